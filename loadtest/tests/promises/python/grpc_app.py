"""A gRPC server on grpcio: grpc_app.py PORT. Stubs are written out, so nothing is generated; messages are bytes."""

import sys
import threading
import time
from concurrent import futures

import grpc

# Calls that ended because their client went away or its deadline passed, by their x-call metadata.
ended = {}
lock = threading.Lock()


def watch(context):
    """Notes that a call was cancelled, from outside of its handler."""
    metadata = dict(context.invocation_metadata())
    name = metadata.get("x-call", "")
    done = threading.Event()

    def over():
        with lock:
            ended[name] = not done.is_set()

    context.add_callback(over)
    return done


def echo(request, context):
    metadata = context.invocation_metadata()
    for name, value in metadata:
        if name == "x-raw-bin":
            context.set_trailing_metadata((("x-raw-back-bin", value[::-1]),))
    context.send_initial_metadata(
        tuple((f"seen-{n}", v) for n, v in metadata if n.startswith("x-plain"))
        + tuple(("seen-xfcc", v) for n, v in metadata if n == "x-forwarded-client-cert")
    )
    return request


def wait(request, context):
    done = watch(context)
    deadline = time.monotonic() + float(request)
    while time.monotonic() < deadline and context.is_active():
        time.sleep(0.005)
    if context.is_active():
        done.set()
    return b"waited"


def was_cancelled(request, _context):
    """b"yes", b"no", or b"unknown" while the call named in the request goes on."""
    with lock:
        return {True: b"yes", False: b"no", None: b"unknown"}[ended.get(request.decode())]


def fail(request, context):
    context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x05details"),))
    context.abort(grpc.StatusCode(grpc.StatusCode.NOT_FOUND), request.decode())


def late_failure(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "midway")


def count(request, context):
    watch(context)
    for number in range(int(request)):
        if not context.is_active():
            return
        yield b"%d" % number


def total(requests, _context):
    return b"%d" % sum(len(request) for request in requests)


def chat(requests, context):
    for request in requests:
        yield b"re: " + request


def endless(_request, context):
    done = watch(context)
    while context.is_active():
        yield b"."
        time.sleep(0.01)
    del done


HANDLERS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "LateFailure": grpc.unary_stream_rpc_method_handler(late_failure),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}

if __name__ == "__main__":
    limit = 16 << 20
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=256),
        options=[("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("postern.Test", HANDLERS),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()
