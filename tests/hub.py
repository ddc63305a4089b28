"""A stand-in for a model hub: what its own client asks of it over HTTP, kept in a dict."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Repositories of models, each with one revision."""

    repos: dict  # name -> path -> content
    private: dict  # name -> bool

    def log_message(self, *args):
        """Say nothing."""

    def answer(self, value, status=200, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            self.repos.setdefault(name, {})
            hidden = said.get("visibility") == "private" or bool(said.get("private"))
            self.private.setdefault(name, hidden)
            return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        if path == "/api/validate-yaml":  # of a model card
            good = json.loads(body)["content"].startswith("---\nlibrary_name: pyro-zoo")
            errors = [] if good else [{"message": "expected a header"}]
            return self.answer({"errors": errors, "warnings": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if not found or found[1] not in self.repos:
            return self.answer({"error": "Repository not found"}, 404)
        if found[2] == "preupload":
            asked = json.loads(body)["files"]
            return self.answer({"files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]})  # fmt: skip
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.repos[found[1]][line["value"]["path"]] = content
        url = f"http://{self.headers['Host']}/{found[1]}/commit/{COMMIT}"
        return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/main|/tree/.*)?", path)
        if found and found[1] in self.repos:
            files = self.repos[found[1]]
            if (found[2] or "").startswith("/tree"):
                return self.answer([
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ])  # fmt: skip
            return self.answer({
                "id": found[1], "sha": COMMIT, "siblings": [{"rfilename": n} for n in files],
            })  # fmt: skip
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if found and found[2] in self.repos.get(found[1], {}):
            content = self.repos[found[1]][found[2]]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(content, ETag=tag, X_Repo_Commit=COMMIT)
        return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@contextmanager
def running():
    """Yield the address of an empty hub, its files and which of its repositories are private."""
    handler = type("Handler", (Hub,), {"repos": {}, "private": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.repos, handler.private
        finally:
            server.shutdown()
            thread.join()
