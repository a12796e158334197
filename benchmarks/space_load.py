# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Load test of the Space of a generating model: half of the users ask questions, half request attention maps.

python benchmarks/space_load.py --model runs/easy_vqa --users 50 --seconds 60

Prints one line of JSON: the numbers of requests that were answered, were rejected by the full queue, or failed (by
error), their latency, and the server's resident memory before, every ten seconds, and after. The rate limit is off,
as all users have the same address.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image, ImageDraw

SPACE = Path(__file__).parent.parent / "hub_space"
QUESTIONS = ("what shape is in the image?", "what is the color of the shape?", "does the image contain a circle?")


def start_space(model: str, port: int) -> subprocess.Popen:
    """Start the Space and return its process when it accepts requests."""
    environment = {**os.environ, "MM_MODEL_ID": model, "MM_REQUESTS_PER_MINUTE": "0", "GRADIO_SERVER_PORT": str(port)}
    options = {"cwd": SPACE, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-u", "app.py"], **options)
    for line in process.stdout:
        if "Running on" in line:
            return process
    raise SystemExit(f"the Space exited with status {process.wait()} before it accepted requests")


def resident_mib(process: subprocess.Popen) -> float:
    """Resident memory in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return round(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, 1)


def visit(number: int, url: str, folder: Path, end: list[float], ready: threading.Barrier, outcomes: list) -> None:
    """Act as one user, who asks about one image, or requests its attention maps, again and again."""
    path = folder / f"{number}.png"
    image = Image.new("RGB", (64, 64), (240, 240 - number % 10, 245))
    ImageDraw.Draw(image).ellipse((10, 10, 40, 40), ("red", "blue", "green")[number % 3])
    image.save(path)
    client = Client(url, verbose=False, httpx_kwargs={"timeout": 60})  # default: 5 seconds; browsers wait longer
    ready.wait()
    turn = number
    while time.monotonic() < end[0]:
        question, begun = QUESTIONS[turn % 3], time.monotonic()
        try:
            if number % 2:
                message = {"text": question, "files": [handle_file(str(path))]}
                answer = client.predict(message, False, 16, api_name="/chat")
            else:
                answer = client.predict(handle_file(str(path)), question, api_name="/look")[0]
            outcome = "answered" if answer else "empty"
        except Exception as error:  # any error is counted by its message
            reason = f"{type(error).__name__}: {error}"
            outcome = "queue full" if "full" in reason.lower() else reason[:200]
        outcomes.append((outcome, time.monotonic() - begun))
        turn += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/easy_vqa")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--port", type=int, default=7899)
    parser.add_argument("--folder", type=Path, default=Path("runs/space_load"), help="folder for generated images")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    process = start_space(str(Path(args.model).resolve()), args.port)
    try:
        outcomes, end, ready = list[tuple[str, float]](), [0.0], threading.Barrier(args.users + 1)
        shared = (f"http://127.0.0.1:{args.port}", args.folder, end, ready, outcomes)
        users = [threading.Thread(target=visit, args=(number, *shared), daemon=True) for number in range(args.users)]
        memory = [resident_mib(process)]
        for user in users:
            user.start()
        end[0] = time.monotonic() + 3600
        ready.wait()
        begun = time.monotonic()
        end[0] = begun + args.seconds
        while time.monotonic() < end[0]:
            time.sleep(min(10, max(0.1, end[0] - time.monotonic())))
            memory.append(resident_mib(process))
        for user in users:
            user.join(120)
        took = np.array([seconds for outcome, seconds in outcomes if outcome == "answered"] or [0])
        figures = {
            "users": args.users,
            "seconds": round(time.monotonic() - begun, 1),
            "requests": dict(Counter(outcome for outcome, _ in outcomes)),
            "latency_p50": round(float(np.median(took)), 3),
            "latency_p95": round(float(np.percentile(took, 95)), 3),
            "still_waiting": sum(user.is_alive() for user in users),
            "resident_mib": [*memory, resident_mib(process)],
        }
        print(json.dumps(figures))
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
