"""`python judge_server.py`: a small judge behind OpenAI's chat completions, with rules instead of a model.

Prints its port. What the judge is asked is `target|output`: the reply is 1 where the output holds the target, else 0.
The model's name says how it behaves: `fails-N` says 503 to the first N requests, `busy-N` 429 with Retry-After,
`hangs-N` does not answer them, `cuts-N` hangs up in the middle, `drips` sends a byte at a time for ever, `moved`
redirects, `chatty` writes no number, `tenths` a number from 0 to 10, `wrong` is not OpenAI's form, `picky-N` says N to
what holds the word `forbidden`. /seen are the
requests so far, /version?NAME sets what it reports. The key is `a-secret-key` where one is sent.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

seen: list[dict] = []
state = {"version": "rules-1", "fingerprint": "fp-1"}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing is logged."""

    def do_GET(self):
        if self.path.startswith("/version?"):
            state["version"], _, state["fingerprint"] = self.path.partition("?")[2].partition(",")
        if self.path == "/elsewhere":
            seen.append({"model": "elsewhere", "key": self.headers.get("Authorization")})
        self.send(200, seen)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            number = sum(one["model"] == body["model"] for one in seen)
            seen.append({**body, "key": self.headers.get("Authorization"), "path": self.path})
        if self.headers.get("Authorization", "Bearer a-secret-key") != "Bearer a-secret-key":
            return self.send(401, {"error": f"no such key: {self.headers['Authorization']}"})
        way, _, count = body["model"].partition("-")
        picked = way == "picky" and "forbidden" in body["messages"][0]["content"]
        if picked or (way in ("fails", "busy", "hangs", "cuts") and number < int(count)):
            return self.misbehave(way, int(count))
        if way == "moved":
            return self.send(302, {}, {"Location": "/elsewhere"})
        if way == "drips":
            return self.drip()
        if way == "wrong":
            return self.send(200, {"answer": "yes"})
        target, _, output = body["messages"][0]["content"].partition("|")
        right = target.strip() in output
        text = {"chatty": "I like it.", "tenths": f"Not bad.\nScore: {10 * right or 2.5}"}.get(way, str(int(right)))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        who = {"model": f"{body['model']}-{state['version']}"}
        if state["fingerprint"]:
            who["system_fingerprint"] = state["fingerprint"]
        return self.send(200, {"object": "chat.completion", "choices": [choice], **who})

    def misbehave(self, way, count):
        if way == "picky":
            self.send(count, {"error": f"context_length_exceeded for {self.headers.get('Authorization')}"})
        elif way == "hangs":
            time.sleep(30)
            self.close_connection = True
        elif way == "cuts":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        else:
            self.send(429 if way == "busy" else 503, {}, {"Retry-After": "1"} if way == "busy" else {})

    def drip(self):
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(300):
                self.wfile.write(b" ")
                time.sleep(0.1)
        except OSError:
            pass
        self.close_connection = True

    def send(self, status, body, headers=None):
        text = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
