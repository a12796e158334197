# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Many people at once in the Space of one model that answers: half of them ask, half look.

python benchmarks/space_load.py --model runs/easy_vqa --users 50 --seconds 60

Prints one line of JSON: how many requests were answered, told that the queue is full, or failed (with what), how long
they took, and the server's resident memory before, every ten seconds, and after. The rate limit is off, as all users
come from one address.
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


def started(model: str, port: int) -> subprocess.Popen:
    """The Space's process, once it serves."""
    environment = {**os.environ, "MM_MODEL_ID": model, "MM_REQUESTS_PER_MINUTE": "0", "GRADIO_SERVER_PORT": str(port)}
    options = {"cwd": SPACE, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-u", "app.py"], **options)
    for line in process.stdout:
        if "Running on" in line:
            return process
    raise SystemExit(f"the Space ended with {process.wait()} before it served")


def resident(process: subprocess.Popen) -> float:
    """MiB of memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return round(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, 1)


def visit(number: int, url: str, folder: Path, end: list[float], ready: threading.Barrier, told: list) -> None:
    """One person: an image of their own, asked or looked at again and again."""
    path = folder / f"{number}.png"
    picture = Image.new("RGB", (64, 64), (240, 240 - number % 10, 245))
    ImageDraw.Draw(picture).ellipse((10, 10, 40, 40), ("red", "blue", "green")[number % 3])
    picture.save(path)
    client = Client(url, verbose=False, httpx_kwargs={"timeout": 60})  # of 5 seconds otherwise; browsers wait longer
    ready.wait()
    turn = number
    while time.monotonic() < end[0]:
        question, begun = QUESTIONS[turn % 3], time.monotonic()
        try:
            if number % 2:
                message = {"text": question, "files": [handle_file(str(path))]}
                said = client.predict(message, False, 16, api_name="/chat")
            else:
                said = client.predict(handle_file(str(path)), question, api_name="/look")[0]
            outcome = "answered" if said else "empty"
        except Exception as error:  # whatever it is, it is counted by its words
            words = f"{type(error).__name__}: {error}"
            outcome = "queue full" if "full" in words.lower() else words[:200]
        told.append((outcome, time.monotonic() - begun))
        turn += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/easy_vqa")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--port", type=int, default=7899)
    parser.add_argument("--folder", type=Path, default=Path("runs/space_load"), help="where images are drawn")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    process = started(str(Path(args.model).resolve()), args.port)
    try:
        told, end, ready = list[tuple[str, float]](), [0.0], threading.Barrier(args.users + 1)
        given = (f"http://127.0.0.1:{args.port}", args.folder, end, ready, told)
        people = [threading.Thread(target=visit, args=(number, *given), daemon=True) for number in range(args.users)]
        memory = [resident(process)]
        for person in people:
            person.start()
        end[0] = time.monotonic() + 3600
        ready.wait()
        begun = time.monotonic()
        end[0] = begun + args.seconds
        while time.monotonic() < end[0]:
            time.sleep(min(10, max(0.1, end[0] - time.monotonic())))
            memory.append(resident(process))
        for person in people:
            person.join(120)
        took = np.array([seconds for outcome, seconds in told if outcome == "answered"] or [0])
        figures = {
            "users": args.users,
            "seconds": round(time.monotonic() - begun, 1),
            "requests": dict(Counter(outcome for outcome, _ in told)),
            "latency_p50": round(float(np.median(took)), 3),
            "latency_p95": round(float(np.percentile(took, 95)), 3),
            "still_waiting": sum(person.is_alive() for person in people),
            "resident_mib": [*memory, resident(process)],
        }
        print(json.dumps(figures))
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
