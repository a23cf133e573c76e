"""WebSockets with websockets: websocket_calls.py ws://HOST:PORT CASE…. The first assertion that does not hold ends it."""

import asyncio
import os
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

PATIENCE = 20


def dial(url, path="/", **options):
    return connect(url + path, max_size=64 << 20, open_timeout=PATIENCE, proxy=None, **options)


async def echo(url):
    async with dial(url) as ws:
        for message in ["hello", "", "grüß göttin", b"\x00\xff" * 10, b""]:
            await ws.send(message)
            got = await asyncio.wait_for(ws.recv(), PATIENCE)
            assert got == message and type(got) is type(message), got


async def handshake(url):
    async with dial(url, "/a//b?c=%20d", subprotocols=["v1.chat", "v2.chat"]) as ws:
        assert ws.subprotocol == "v2.chat"
        await ws.send("headers")
        path, subprotocol, xfcc = (await ws.recv()).split(" ")
        assert (path, subprotocol) == ("/a//b?c=%20d", "v2.chat"), (path, subprotocol)
        assert xfcc.startswith("By=spiffe://mesh.test/ns/demo/sa/server;"), xfcc
        assert ws.response.headers["sec-websocket-accept"]


async def ping(url):
    async with dial(url) as ws:
        for _ in range(10):
            pong = await ws.ping(os.urandom(125))
            await asyncio.wait_for(pong, PATIENCE)


async def large(url):
    message = os.urandom(16 << 20)
    async with dial(url, compression=None) as ws:
        await ws.send(message)
        assert await asyncio.wait_for(ws.recv(), PATIENCE) == message


async def fragmented(url):
    async with dial(url) as ws:
        await ws.send(str(n) * 1000 for n in range(50))
        assert await asyncio.wait_for(ws.recv(), PATIENCE) == "".join(str(n) * 1000 for n in range(50))


async def close_codes(url):
    for code, reason in [(1000, "done"), (1001, "away"), (1011, "broken"), (4999, "ä" * 60)]:
        async with dial(url) as ws:
            await ws.send(f"close {code} {reason}")
            try:
                await asyncio.wait_for(ws.recv(), PATIENCE)
                raise AssertionError("it goes on")
            except ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (code, reason), closed
        async with dial(url) as ws:
            await ws.close(code, reason)
            assert ws.close_code == code


async def refused(url):
    try:
        await dial(url, "/refuse")
        raise AssertionError("the app refused it")
    except InvalidStatus as refusal:
        assert (refusal.response.status_code, refusal.response.body) == (401, b"who?"), refusal


async def at_once(url):
    async def one(number):
        async with dial(url) as ws:
            for turn in range(20):
                await ws.send(f"{number}.{turn}")
                assert await asyncio.wait_for(ws.recv(), PATIENCE) == f"{number}.{turn}"

    await asyncio.gather(*(one(number) for number in range(50)))


async def denied(url):
    try:
        await dial(url)
        raise AssertionError("it was let in")
    except InvalidStatus as refusal:
        assert refusal.response.status_code == 403, refusal
        assert len(refusal.response.headers["x-postern-denial"]) == 26


async def held_open(url):
    """Echoes every 20 ms until something ends it: prints `open` and each hundredth time, then the moment of the end."""
    async with dial(url, ping_interval=None) as ws:
        try:
            turn = 0
            while True:
                await ws.send(str(turn))
                assert await asyncio.wait_for(ws.recv(), PATIENCE) == str(turn)
                if turn == 0:
                    print("open", flush=True)
                turn += 1
                await asyncio.sleep(0.02)
        except ConnectionClosed:
            print(f"ended {time.time()}", flush=True)


async def main():
    for case in sys.argv[2:]:
        began = time.monotonic()
        await globals()[case](sys.argv[1])
        print(f"{case}: {time.monotonic() - began:.2f} s", file=sys.stderr)


asyncio.run(main())
