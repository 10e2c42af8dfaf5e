"""A hub of one repository on this machine: what huggingface_hub asks for, answered from a folder."""

import contextlib
import hashlib
import http.server
import json
import threading
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_cache(cache: Path, repo: str, source: Path, commit: str = COMMIT) -> Path:
    """Lays `source` out as huggingface_hub keeps a repository: blobs, and a snapshot of links; returns the snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        blob = folder / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


@contextlib.contextmanager
def serving(repo: str, source: Path, commit: str = COMMIT):
    """Yields (address, the names of files whose bytes were asked for)."""
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    sent: list[str] = []
    listing = [
        {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()} for name, body in files.items()
    ]

    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body: bytes, code: int = 200, **headers: str):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.partition("?")[0]
            resolve = f"/{repo}/resolve/{commit}/"
            if path.startswith(f"/api/models/{repo}/tree/"):
                return self.answer(json.dumps(listing).encode(), Content_Type="application/json")
            if path in (f"/api/models/{repo}", *(f"/api/models/{repo}/revision/{name}" for name in ("main", commit))):
                info = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                return self.answer(json.dumps(info).encode(), Content_Type="application/json")
            name = path.removeprefix(resolve)
            if path.startswith(resolve) and name in files:
                if self.command == "GET":
                    sent.append(name)
                etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
                return self.answer(files[name], ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes")
            return self.answer(b"", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
