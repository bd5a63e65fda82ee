"""A model server that is ready at once and well: it answers every request, and costs as little as Python can."""

import os
import selectors
import socket
import sys

if "--version" in sys.argv:
    sys.exit(0)

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'

listener = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), backlog=64)
waiting = selectors.DefaultSelector()
waiting.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in waiting.select():
        if key.fileobj is listener:
            waiting.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        client = key.fileobj
        assert isinstance(client, socket.socket)
        try:
            if client.recv(65536):
                client.sendall(ANSWER)
                continue
        except OSError:
            pass
        waiting.unregister(client)
        os.close(client.detach())
