"""Counts the database queries, cache look-ups and outbound calls of a request into its `apivitals.tally`.

The counts depend neither on spans nor on sampling. `install` asks for nothing to be imported: each
library is hooked when the application imports it, or at once if it already has. What is counted:

- **SQLAlchemy**, sync and async: every statement sent to the driver is one query, an `executemany` too;
  fetching rows is not part of its time.
- **httpx** and **requests**: every request on the network, redirects included, until the response
  headers. Transports that stay in the process (ASGI, WSGI, mocks) are not hooked.
- **redis**, sync, async and cluster: the commands in `_LOOKUPS` hit or miss by their reply, also in a
  pipeline (a cluster's pipeline does not show its commands: only its time counts). Other commands add time.

A failure in here never reaches the application. Its own exceptions pass through, with their time counted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import wraps
from inspect import iscoroutinefunction
from threading import Lock
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

from apivitals import tally

logger = logging.getLogger(__name__)
_lock = Lock()
_registered = False
# Read by every hook: one that another instrumentation has wrapped cannot be taken out, only be silenced.
_installed = False
_undo: list[Callable[[], None]] = []


def install() -> None:
    """Hook the client libraries, those already imported and those to come. Calling it again changes nothing."""
    global _registered, _installed
    with _lock:
        if _installed:
            return
        _installed = True
        first, _registered = not _registered, True
    # Outside the lock: for a module that is imported already, the hook runs here and takes it.
    for name, patch in _PATCHES.items():
        if first:
            register_post_import_hook(_guarded(patch), name)
        elif name in sys.modules:
            _guarded(patch)(sys.modules[name])


def uninstall() -> None:
    """Take the hooks out; libraries imported from now on are left alone. `install` puts them back."""
    global _installed
    with _lock:
        _installed = False
        steps = _undo[::-1]
        _undo.clear()
    for step in steps:
        step()


def _guarded(patch: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """The same patch, which does nothing while uninstalled and never makes an import fail."""

    def apply(module: ModuleType) -> None:
        if not _installed:
            return
        try:
            patch(module)
        except Exception:
            logger.warning("apivitals cannot count the calls of %s", module.__name__, exc_info=True)

    return apply


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Put `wrap(method)` in the place of a method that `owner` itself defines, and note how to undo it."""
    before = vars(owner).get(name)
    if before is None:
        return
    # Through the class, so that another instrumentation's wrapper below ours still sees its instance.
    method = getattr(owner, name)
    after = wraps(method)(wrap(method))
    setattr(owner, name, after)

    def restore() -> None:
        if vars(owner).get(name) is after:
            setattr(owner, name, before)

    with _lock:
        _undo.append(restore)


def _timed(
    method: Any,
    block: Callable[[], AbstractContextManager[Any]],
    before: Callable[[tuple[Any, ...]], Any] = lambda args: None,
    after: Callable[[Any, Any, Any], None] = lambda timer, noted, reply: None,
) -> Any:
    """`method`, sync or async, run inside `block()` when a request is being served.

    `before(args)` may note something about the call, `after(timer, noted, reply)` gets it back with the reply.
    """
    if iscoroutinefunction(method):

        async def timed_async(*args: Any, **keywords: Any) -> Any:
            if tally.current() is None or not _installed:
                return await method(*args, **keywords)
            noted = before(args)
            with block() as timer:
                reply = await method(*args, **keywords)
                after(timer, noted, reply)
                return reply

        return timed_async

    def timed(*args: Any, **keywords: Any) -> Any:
        if tally.current() is None or not _installed:
            return method(*args, **keywords)
        noted = before(args)
        with block() as timer:
            reply = method(*args, **keywords)
            after(timer, noted, reply)
            return reply

    return timed


# --- SQLAlchemy


def _patch_sqlalchemy(module: ModuleType) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    hooks = (
        ("before_cursor_execute", _before_query),
        ("after_cursor_execute", _after_query),
        ("handle_error", _query_failed),
    )
    for name, hook in hooks:
        event.listen(Engine, name, hook)

    def restore() -> None:
        for name, hook in hooks:
            event.remove(Engine, name, hook)

    with _lock:
        _undo.append(restore)


# SQLAlchemy wants the parameters of its listeners by number, and `context` by position.
def _before_query(connection: Any, cursor: Any, statement: Any, parameters: Any, context: Any, many: bool) -> None:
    if tally.current() is None:
        return
    try:
        context._apivitals_timer = timer = tally.query()
        timer.__enter__()
    except Exception:
        logger.debug("cannot time a query", exc_info=True)


def _after_query(connection: Any, cursor: Any, statement: Any, parameters: Any, context: Any, many: bool) -> None:
    if tally.current() is not None:
        _end_query(context)


def _query_failed(failure: Any) -> None:
    # Failures to connect, to fetch or to commit come here too; they have no statement running.
    if tally.current() is not None and failure.execution_context is not None:
        _end_query(failure.execution_context)


def _end_query(context: Any) -> None:
    try:
        timer = vars(context).pop("_apivitals_timer", None)
        if timer is not None:
            timer.__exit__(None, None, None)
    except Exception:
        logger.debug("cannot count a query", exc_info=True)


# --- httpx and requests


def _patch_httpx(module: ModuleType) -> None:
    _replace(module.HTTPTransport, "handle_request", _time_call)
    _replace(module.AsyncHTTPTransport, "handle_async_request", _time_call)


def _patch_requests(module: ModuleType) -> None:
    # Session.send follows redirects; each of them goes through the adapter.
    _replace(module.HTTPAdapter, "send", _time_call)


def _time_call(method: Any) -> Any:
    return _timed(method, tally.outbound)


# --- redis

# Commands that look something up, and what their reply holds: one value, one a key, or a whole hash.
_LOOKUPS = {
    **dict.fromkeys(("GET", "GETEX", "GETDEL", "HGET", "JSON.GET"), "one"),
    **dict.fromkeys(("MGET", "HMGET", "HGETEX", "HGETDEL", "JSON.MGET"), "each"),
    "HGETALL": "hash",
}


def _patch_redis(module: ModuleType) -> None:
    _replace(module.Redis, "execute_command", _time_command)
    _replace(module.Pipeline, "immediate_execute_command", _time_command)
    _replace(module.Pipeline, "execute", lambda method: _timed(method, tally.cache, _queued_commands, _count_lookups))


def _patch_redis_cluster(module: ModuleType) -> None:
    _replace(module.RedisCluster, "execute_command", _time_command)
    _replace(module.ClusterPipeline, "execute", lambda method: _timed(method, tally.cache))


def _time_command(method: Any) -> Any:
    return _timed(
        method,
        tally.cache,
        lambda args: args[1:],
        lambda lookup, command, reply: _count_lookups(lookup, (command,), (reply,)),
    )


def _queued_commands(args: tuple[Any, ...]) -> list[Any]:
    # Executing a pipeline empties its queue, so this is read before.
    try:
        return [command for command, *_ in args[0].command_stack]
    except Exception:
        logger.debug("cannot read the commands of a pipeline", exc_info=True)
        return []


def _count_lookups(lookup: tally.CacheLookup, commands: Iterable[Any], replies: Iterable[Any]) -> None:
    try:
        for command, reply in zip(commands, replies, strict=False):
            kind = _LOOKUPS.get(str(command[0]).upper())
            if kind is None or isinstance(reply, Exception):
                continue
            if kind == "each":
                misses = sum(value is None for value in reply or ())
                lookup.hits += len(reply or ()) - misses
                lookup.misses += misses
            elif reply is None or (kind == "hash" and not reply):
                lookup.misses += 1
            else:
                lookup.hits += 1
    except Exception:
        logger.debug("cannot tell the hits of a reply", exc_info=True)


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "sqlalchemy": _patch_sqlalchemy,
    "httpx": _patch_httpx,
    "requests.adapters": _patch_requests,
    "redis.client": _patch_redis,
    "redis.asyncio.client": _patch_redis,
    "redis.cluster": _patch_redis_cluster,
    "redis.asyncio.cluster": _patch_redis_cluster,
}
