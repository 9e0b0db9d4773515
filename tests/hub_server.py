"""A stand-in for the hub's HTTP API, in memory: repositories with commits and branches, uploads and downloads."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Repository:
    def __init__(self):
        self.commits = {"0" * 40: {}}  # commit -> {path: bytes}
        self.branches = {"main": "0" * 40}

    def resolve(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, branch: str, changes: list[dict]) -> str:
        files = dict(self.commits[self.branches[branch]])
        for change in changes:
            path = change["value"].get("path")
            if change["key"] == "file":
                files[path] = base64.b64decode(change["value"]["content"])
            elif change["key"] == "deletedFile":
                files.pop(path)
            else:
                assert change["key"] == "header", change
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


class Hub:
    """`with Hub() as hub:` serves at hub.url; hub.repositories: {id: Repository}; hub.requests: what was asked for."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status=200, content=b"", headers=()):
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (("Content-Length", len(content)), *dict(headers).items()):
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = unquote(urlsplit(self.path).path).strip("/")
                hub.requests.append(f"{self.command} /{path}")
                parts = path.split("/")
                if parts[0] == "api":
                    self.answer(*hub.api(parts[1:], body))
                else:
                    self.answer(*hub.file("/".join(parts[:2]), parts[3], "/".join(parts[4:])))

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def api(self, parts: list[str], body: bytes):
        if parts == ["validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts == ["repos", "create"]:
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.repositories.setdefault(name, Repository())
            return 200, {"url": f"{self.url}/{name}", "name": name}
        assert parts[0] == "models", parts
        name, rest = "/".join(parts[1:3]), parts[3:]
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"}
        if rest[:1] == ["branch"]:
            repository.branches.setdefault(rest[1], repository.branches["main"])
            return 200, {}
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.resolve(revision)
        if commit is None:
            return 404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"}
        files = repository.commits[commit]
        if not rest or rest[0] == "revision":
            return 200, {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        if rest[0] == "preupload":
            wanted = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
        if rest[0] == "commit":
            made = repository.commit(revision, [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{made}", "commitOid": made}
        assert rest[0] == "tree", parts
        if len(rest) > 2:
            return 404, {"error": "no folder"}, {"X-Error-Code": "EntryNotFound"}
        return 200, [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]

    def file(self, name: str, revision: str, path: str):
        repository = self.repositories.get(name)
        commit = repository and repository.resolve(revision)
        if not commit:
            return 404, b"", {"X-Error-Code": "RevisionNotFound" if repository else "RepoNotFound"}
        if path not in repository.commits[commit]:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
        content = repository.commits[commit][path]
        return 200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
