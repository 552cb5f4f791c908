"""A local stand-in of the Imaging Data Commons: buckets over loopback HTTP, and a client as of ``idc-index``."""

from __future__ import annotations

import json
import threading
import types
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Objects = dict[str, bytes]


class ObjectStore:
    """Objects by key, served at ``url``; ``requested`` counts, ``broken`` keys end the connection half-way."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.requested: list[str] = []
        self.broken: set[str] = set()
        self.url = ""

    def prefix(self, prefix: str) -> dict[str, int]:
        return {key: len(content) for key, content in self.objects.items() if key.startswith(prefix)}


@contextmanager
def served(store: ObjectStore) -> Iterator[ObjectStore]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.path.lstrip("/")
            if key.endswith("?list"):
                content = json.dumps(store.prefix(key.removesuffix("?list"))).encode()
            elif key in store.objects:
                store.requested.append(key)
                content = store.objects[key]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if key in store.broken else content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def idc_index_module(store: ObjectStore, index: dict[str, list[Any]]) -> types.ModuleType:
    """A module ``idc_index``: like the real client it logs what fails and returns, and skips files that are there."""

    class IDCClient:
        def __init__(self) -> None:
            self.index = index

        @staticmethod
        def get_idc_version() -> str:
            return "v0"

        def download_from_selection(
            self,
            downloadDir: str,
            seriesInstanceUID: list[str],
            dirTemplate: str,
            use_s5cmd_sync: bool,
            show_progress_bar: bool,
        ) -> None:
            assert dirTemplate == "%PatientID/%Modality_%SeriesInstanceUID"
            assert use_s5cmd_sync and not show_progress_bar
            for uid in seriesInstanceUID:
                if uid not in index["SeriesInstanceUID"]:
                    raise ValueError(f"{uid} not in the index")
                row = index["SeriesInstanceUID"].index(uid)
                folder = Path(downloadDir) / index["PatientID"][row] / f"{index['Modality'][row]}_{uid}"
                folder.mkdir(parents=True, exist_ok=True)
                with urllib.request.urlopen(f"{store.url}/{uid}/?list") as answer:
                    sizes = json.load(answer)
                for key, size in sizes.items():
                    self.sync(key, size, folder / Path(key).name)

        def sync(self, key: str, size: int, target: Path) -> None:
            if target.is_file() and target.stat().st_size == size:
                return
            try:
                with urllib.request.urlopen(f"{store.url}/{key}") as answer:
                    target.write_bytes(answer.read())
            except (OSError, HTTPException):
                pass

    module = types.ModuleType("idc_index")
    module.IDCClient = IDCClient  # type: ignore[attr-defined]
    return module
