"""A WebSocket server on websockets: websocket_app.py PORT. Echoes; `close CODE REASON` closes so. `v2.chat` where it is offered."""

import asyncio
import sys

from websockets.asyncio.server import serve
from websockets.http11 import Response
from websockets.datastructures import Headers


async def echo(connection):
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            _, code, reason = message.split(" ", 2)
            await connection.close(int(code), reason)
        elif isinstance(message, str) and message == "headers":
            xfcc = connection.request.headers.get("x-forwarded-client-cert", "")
            await connection.send(f"{connection.request.path} {connection.subprotocol} {xfcc}")
        else:
            await connection.send(message)


def refuse(connection, request):
    if request.path == "/refuse":
        return Response(401, "Unauthorized", Headers([("content-length", "4")]), b"who?")


def choose(_connection, offered):
    return "v2.chat" if "v2.chat" in offered else None


async def main():
    options = {"max_size": 64 << 20, "select_subprotocol": choose, "process_request": refuse}
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), **options) as server:
        await server.serve_forever()


asyncio.run(main())
