"""A module that `edgevit.devices.confined.call` runs in the tests: it does what it is told, however bad."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgevit.devices import confined
from edgevit.errors import ParityError


def main(request: dict[str, Any]) -> Any:
    what = request["do"]
    if what == "signal":
        os.kill(os.getpid(), getattr(signal, request["name"]))
    elif what == "eat":
        held = []
        while True:
            held.append(bytearray(64 << 20))
    elif what == "abort out of memory":
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()
    elif what == "sleep":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        Path(request["pid"]).write_text(str(child.pid))
        time.sleep(1000)
    elif what == "leave":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        return {"pid": child.pid}
    elif what == "draw":
        confined.draw_on(request["terminal"])
        print("a bar", file=sys.stderr, flush=True)
        os.write(2, b"native words")
        os._exit(request["code"])
    elif what == "exit":
        os.write(1, b"x" * 100_000 + b"\nlast words\n")
        os._exit(77)
    elif what == "refuse":
        return {"error": "gates changed", "code": ParityError.exit_code}
    elif what == "limits":
        import resource

        names = ("RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_CORE", "RLIMIT_FSIZE")
        return {name: resource.getrlimit(getattr(resource, name))[0] for name in names}
    return {"done": what}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    confined.hold(asked["allowed"])
    told = asked.get("raw") or json.dumps(main(asked))
    if told != "nothing":
        (Path.cwd() / asked["answer"]).write_text(told)
