"""What people may do to a job, each as one script: the ledger they change is the workers', too.

KEYS are those of `job_keys`. Each answers 1 if it changed something, 0 if the job's state forbids.
"""

from .names import Keys

OVER_KEPT_S = 30 * 24 * 3600  # the books of a job that is over

# KEYS[7] is the list of jobs. ARGV: id, time, then the hash's fields and values, `spec` first. The
# same one again is what redis-py repeats when the connection was lost before the answer came.
SUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'spec') == ARGV[4] and 1 or 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('ZADD', KEYS[7], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[4], 0, 'plan')
return 1
"""

PAUSE = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'planning' and state ~= 'running' and state ~= 'checking' then return 0 end
redis.call('HSET', KEYS[1], 'paused_from', state, 'state', 'paused', 'reason', ARGV[1])
return 1
"""

# What nobody holds is due at once; who is still at work on a chunk goes on with it. Slices that
# could not be reached have had their time: what of them cannot be reached now either is recorded.
RESUME = """
if redis.call('HGET', KEYS[1], 'state') ~= 'paused' then return 0 end
local before = redis.call('HGET', KEYS[1], 'paused_from')
local reached = redis.call('HGET', KEYS[1], 'reached') or '0'
redis.call('HSET', KEYS[1], 'state', before, 'reason', '', 'resumed', reached)
redis.call('HDEL', KEYS[1], 'paused_from', 'trouble', 'trouble_since')
for _, what in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  if redis.call('HEXISTS', KEYS[5], what) == 0 then redis.call('ZADD', KEYS[4], 0, what) end
end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 7) == 'outage:' then redis.call('HSET', KEYS[1], name, -1) end
end
redis.call('DEL', KEYS[6])
return 1
"""

CANCEL = f"""
local state = redis.call('HGET', KEYS[1], 'state')
if state == 'complete' or state == 'incomplete' or state == 'cancelled' or state == 'failed' then
  return 0
end
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'reason', ARGV[1], 'ended_at', ARGV[2])
redis.call('DEL', KEYS[4], KEYS[5], KEYS[6])
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, {OVER_KEPT_S}) end
return 1
"""

# Chunks with failures are taken out of the count and done again; `round` tells their markers apart.
RETRY_FAILED = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'complete' and state ~= 'incomplete' then return 0 end
local function number(name) return tonumber(redis.call('HGET', KEYS[1], name) or '0') end
local chunks, items, failed = number('chunks'), number('items'), number('failed')
local size = number('chunk_size')
local first = redis.call('BITPOS', KEYS[3], 1)
if first < 0 then return 0 end
local reopened = redis.call('BITCOUNT', KEYS[3]) * size
if redis.call('GETBIT', KEYS[3], chunks - 1) == 1 then  -- the last one is smaller
  reopened = reopened + items - chunks * size
end
redis.call('BITOP', 'AND', KEYS[3], KEYS[3], KEYS[2])  -- of none that is to be done already
redis.call('BITOP', 'XOR', KEYS[2], KEYS[2], KEYS[3])
redis.call('DEL', KEYS[3])
-- What an incomplete job lacks was not counted, so there may be less to take out.
redis.call('HSET', KEYS[1], 'done', math.max(0, number('done') + failed - reopened))
redis.call('HINCRBY', KEYS[1], 'round', 1)
redis.call('HSET', KEYS[1], 'failed', 0, 'cursor', first, 'state', 'running', 'reason', '')
redis.call('HDEL', KEYS[1], 'ended_at')
for _, key in ipairs(KEYS) do redis.call('PERSIST', key) end
return 1
"""

VERIFY = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'complete' and state ~= 'incomplete' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'checking', 'reason', '', 'repairs', 0)
redis.call('HDEL', KEYS[1], 'ended_at')
redis.call('ZADD', KEYS[4], 0, 'check')
for _, key in ipairs(KEYS) do redis.call('PERSIST', key) end
return 1
"""


def job_keys(keys: Keys, job: str) -> list[str]:
    """Hash, done, failed, flight, held, unfit: in the order in which the scripts take them."""
    return [
        keys.job(job),
        keys.job_done(job),
        keys.job_failed(job),
        keys.job_flight(job),
        keys.job_held(job),
        keys.job_unfit(job),
    ]
