"""A webhook behind TLS and a proxy, both on 127.0.0.1: `secure.py FOLDER`.

FOLDER holds what openssl made: `good.pem` and `wrong.pem` with their keys. Prints one JSON line with the ports, then one for each
message and each connection through the proxy. Ends with its standard input.
"""

import http.server
import json
import socket
import ssl
import sys
import threading

folder = sys.argv[1]


def say(**what):
    print(json.dumps(what), flush=True)


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        say(seen="message", by=self.server.name, host=self.headers["Host"], path=self.path, occasion=body["occasion"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # A client that does not trust us hangs up in the middle of the handshake.


def serve(name, certificate=None):
    server = Quiet(("127.0.0.1", 0), Hook)
    server.name = name
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{folder}/{certificate}.pem", f"{folder}/{certificate}.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self):
        say(seen="connect", to=self.path)
        # Whatever the name, it is one of ours.
        with socket.create_connection(("127.0.0.1", ports["good"])) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=pump, args=(far, self.connection))
            back.start()
            pump(self.connection, far)
            back.join()
        self.close_connection = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        say(seen="forward", to=self.path, occasion=json.loads(body)["occasion"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


ports = {"good": serve("good", "good"), "wrong": serve("wrong", "wrong"), "plain": serve("plain")}
proxy = Quiet(("127.0.0.1", 0), Proxy)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
say(**ports, proxy=proxy.server_port)
sys.stdin.read()
