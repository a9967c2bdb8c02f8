"""What workers do to the books of a job, each as one script; all but STRIKE_OFF follow HEAD.

What people do to them is in `api_client.wire.jobscripts`.
"""

# Shared by the scripts: KEYS are the job's hash, done, failed, flight, held.
HEAD = """
local H, DONE, FAILED, FLIGHT, HELD = unpack(KEYS)
local function field(name) return redis.call('HGET', H, name) end
local function number(name) return tonumber(field(name) or '0') end
local function to(state, reason)
  redis.call('HSET', H, 'state', state, 'reason', reason)
end
-- A message may be on its way three times as long as the last one was seen to be; but one that
-- waited for more than an hour (3600 s) waited for a worker, which is there now.
local function patience(given)
  return math.max(tonumber(given), math.min(number('waited_s'), 3600) * 3)
end
local function fill(now, sent_s)
  local started = {}
  if field('state') ~= 'running' then return started end
  local due = now + patience(sent_s)
  local at, chunks, window = number('cursor'), number('chunks'), number('window')
  while at < chunks and redis.call('ZCARD', FLIGHT) < window do
    local is_done = redis.call('GETBIT', DONE, at) == 1
    if is_done and at % 8 == 0 then  -- over bytes, not bits: a million would hold Redis for seconds
      at = redis.call('BITPOS', DONE, 0, at / 8)
    else
      if not is_done and not redis.call('ZSCORE', FLIGHT, at) then
        redis.call('ZADD', FLIGHT, due, at)
        started[#started + 1] = tostring(at)
      end
      at = at + 1
    end
  end
  redis.call('HSET', H, 'cursor', at)
  if at >= chunks and redis.call('ZCARD', FLIGHT) == 0 then
    to('checking', '')
    redis.call('ZADD', FLIGHT, due, 'check')
    started[1] = 'check'
  end
  return started
end
"""

CLAIM = """
local what, state, now, lease_s, claim, waited = unpack(ARGV)
if field('state') ~= state then return 'stopped' end
if tonumber(what) and redis.call('GETBIT', DONE, what) == 1 then
  redis.call('ZREM', FLIGHT, what)
  redis.call('HDEL', HELD, what)
  return 'done'
end
local due = redis.call('ZSCORE', FLIGHT, what)
local held = redis.call('HGET', HELD, what)
-- Our own, where the answer was lost and redis-py asked again, is no other one.
if held and held ~= claim and due and tonumber(due) > tonumber(now) then return 'elsewhere' end
redis.call('ZADD', FLIGHT, now + lease_s, what)
redis.call('HSET', HELD, what, claim)
redis.call('HSET', H, 'waited_s', waited)
return 'mine'
"""

RENEW = """
local what, claim, due = unpack(ARGV)
if redis.call('HGET', HELD, what) ~= claim then return 0 end
redis.call('ZADD', FLIGHT, 'XX', due, what)
return 1
"""

GIVE_BACK = """
local what, claim, due = unpack(ARGV)
if redis.call('HGET', HELD, what) ~= claim then return 0 end
redis.call('HDEL', HELD, what)
redis.call('ZADD', FLIGHT, 'XX', due, what)
return 1
"""

WALKED = """
if field('state') == 'planning' then redis.call('HSET', H, 'items', ARGV[1]) end
"""

PLANNED = """
local now, sent_s = tonumber(ARGV[1]), tonumber(ARGV[2])
if field('state') ~= 'planning' then return {} end
redis.call('ZREM', FLIGHT, 'plan')
redis.call('HDEL', HELD, 'plan')
redis.call('HSET', H, 'state', 'running', 'started_at', now, unpack(ARGV, 3))
redis.call('HDEL', H, 'trouble', 'trouble_since')
return fill(now, sent_s)
"""

OUTAGE = """
if not field('state') then return 1 end  -- it is forgotten, and its id free to be submitted again
local name, reached = 'outage:' .. ARGV[1], number('reached')
-- Who resumed a job was told that a folder is empty: what is so until something comes through is.
if ARGV[2] == 'empty' and field('resumed') == tostring(reached) then return 0 end
-- The others that are held may have been through before it began: one more must come through.
if redis.call('HSETNX', H, name, reached + redis.call('HLEN', HELD) - 1) == 1 then return 1 end
return reached > number(name) and 0 or 1
"""

FINISHED = """
local now, sent_s, chunk, done, failed, worker, held = unpack(ARGV, 1, 7)
if redis.call('TTL', H) ~= -1 then return {} end  -- it is over, or forgotten
redis.call('ZREM', FLIGHT, chunk)
redis.call('HDEL', HELD, chunk)
redis.call('HDEL', H, 'outage:' .. chunk)
if tonumber(done) > 0 then redis.call('HINCRBY', H, 'reached', 1) end
if redis.call('SETBIT', DONE, chunk, 1) == 0 then
  redis.call('HINCRBY', H, 'done', done)
  redis.call('HINCRBY', H, 'failed', failed)
  redis.call('HINCRBY', H, 'by:' .. worker, done + failed - held)
  if tonumber(failed) > 0 then redis.call('SETBIT', FAILED, chunk, 1) end
  for at = 8, #ARGV, 2 do redis.call('HINCRBYFLOAT', H, ARGV[at], ARGV[at + 1]) end
end
redis.call('HDEL', H, 'trouble', 'trouble_since')
return fill(tonumber(now), sent_s)
"""

TROUBLE = """
local what, claim, now, sentence, pause_min_s, pause_max_s = unpack(ARGV)
if redis.call('HGET', HELD, what) ~= claim then return 0 end
redis.call('HSETNX', H, 'trouble_since', now)
redis.call('HSET', H, 'trouble', sentence)
redis.call('HDEL', HELD, what)
local lasting = now - number('trouble_since')
local state = field('state')
local at_work = state == 'planning' or state == 'running' or state == 'checking'
if at_work and lasting >= number('patience_s') then
  redis.call('HSET', H, 'paused_from', state)
  to('paused', sentence)
end
local pause = math.min(tonumber(pause_max_s), math.max(tonumber(pause_min_s), lasting))
redis.call('ZADD', FLIGHT, 'XX', now + pause, what)
return 1
"""

FALLEN = """
local now, sent_s = tonumber(ARGV[1]), ARGV[2]
local state = field('state')
if state ~= 'planning' and state ~= 'running' and state ~= 'checking' then return {} end
local fallen = redis.call('ZRANGEBYSCORE', FLIGHT, '-inf', now)
for _, what in ipairs(fallen) do
  redis.call('HDEL', HELD, what)
  redis.call('ZADD', FLIGHT, now + patience(sent_s), what)
end
for _, what in ipairs(fill(now, sent_s)) do fallen[#fallen + 1] = what end
return fallen
"""

REOPEN = """
local now, sent_s, done, failed = unpack(ARGV, 1, 4)
if field('state') ~= 'checking' then return {} end
for at = 5, #ARGV do
  redis.call('SETBIT', DONE, ARGV[at], 0)
  redis.call('SETBIT', FAILED, ARGV[at], 0)
end
redis.call('HSET', H, 'done', done, 'failed', failed, 'cursor', ARGV[5])
redis.call('HINCRBY', H, 'repairs', 1)
redis.call('ZREM', FLIGHT, 'check')
redis.call('HDEL', HELD, 'check')
to('running', '')
return fill(tonumber(now), sent_s)
"""

END = """
local at, state, reason, now, kept_s = unpack(ARGV)
local is = field('state')
if is ~= at and not (is == 'paused' and field('paused_from') == at) then return 0 end
redis.call('DEL', FLIGHT, HELD)
redis.call('HSET', H, 'ended_at', now, unpack(ARGV, 6))
redis.call('HDEL', H, 'trouble', 'trouble_since')
to(state, reason)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, kept_s) end
return 1
"""

UNFIT = """
if redis.call('TTL', H) ~= -1 then return 0 end  -- it is over: nothing of it would ever expire
return redis.call('SADD', KEYS[6], ARGV[1])
"""

# KEYS: the list of jobs, then hashes; ARGV: their ids. One may be submitted again meanwhile.
STRIKE_OFF = """
for at, job in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[at + 1]) == 0 then redis.call('ZREM', KEYS[1], job) end
end
"""
