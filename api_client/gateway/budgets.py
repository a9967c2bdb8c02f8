"""What the holder of a token has left of this minute, counted by all gateways together.

One key per token and unit, which says when its whole budget is back; each item moves that on by a
minute divided by the limit (the generic cell rate algorithm, of ATM networks). So a minute's
budget may be spent at once, comes back steadily, and a refusal knows how long to wait.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Annotated

import redis
from fastapi import Depends, Request

from ..wire.broker import async_redis_client
from ..wire.errors import BadRequest, ClipyardError, NoBroker
from ..wire.names import Keys
from .passes import Pass, Unit
from .settings import GatewaySettings

__all__ = ["Budgets", "OverLimit", "Spend"]

PERIOD_S = 60
PATIENCE_S = 1.0
SPEND = "clipyard.spend"  # where in the scope of a request the guard leaves the function

# KEYS: the budget. ARGV: what is asked for and the whole budget, both in seconds of refill.
# Answers with the seconds to wait; nothing is spent unless they are 0.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local held = tonumber(redis.call('GET', KEYS[1]) or 0)
held = math.min(held, now + ARGV[2])  -- the clock may have been set back
local full = math.max(now, held) + ARGV[1]
local wait = full - now - ARGV[2]
if wait > 0 then return tostring(wait) end
local whole_ms = math.max(1, math.ceil((full - now) * 1000))  -- so little may be lost to rounding
redis.call('SET', KEYS[1], string.format('%.6f', full), 'PX', whole_ms)
return '0'
"""
_SLACK_S = 1e-3  # of the rounding above: the last item of a whole budget must fit


class OverLimit(ClipyardError):
    """The budget of this minute is spent."""

    code = "rate_limit_exceeded"
    retryable = True

    def __init__(self, sentence: str, *, retry_after_s: int = 1) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class Budgets:
    """Belongs to one event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._keys = Keys(settings.key_prefix)
        self._redis = async_redis_client(settings, patience_s=PATIENCE_S)
        self._take = self._redis.register_script(_TAKE)

    async def close(self) -> None:
        await self._redis.aclose()

    async def spend(self, holder: Pass | None, unit: Unit, number: int) -> None:
        """Take so many off the holder's budget; who holds no token has no limit.

        Raises:
            OverLimit: there is not enough left. BadRequest: there never will be.
            NoBroker: Redis, where the budgets are, cannot be reached.
        """
        if holder is None or (limit := holder.limits.get(unit)) is None:
            return
        if number > limit:
            raise BadRequest(
                f"this token may send {limit} items a minute, and this request has {number}; "
                "send smaller ones"
            )
        budget = self._keys.budget(holder.name, unit)
        asked_s = number * PERIOD_S / limit
        try:
            answer = await self._take(keys=[budget], args=[asked_s, PERIOD_S + _SLACK_S])
        except redis.RedisError as error:
            raise NoBroker(f"the budgets of tokens cannot be looked up: {error}") from None
        if wait_s := math.ceil(float(answer)):
            raise OverLimit(
                f"this token may send {limit} {unit.name.lower()} a minute; "
                f"ask again in {wait_s} s",
                retry_after_s=wait_s,
            )


def _spending(request: Request) -> Callable[[int], Awaitable[None]]:
    spend: Callable[[int], Awaitable[None]] = request.scope[SPEND]
    return spend


# What a route takes: a function that takes so many items off the caller's budget.
Spend = Annotated[Callable[[int], Awaitable[None]], Depends(_spending)]
