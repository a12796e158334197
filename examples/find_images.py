"""Train a retrieval model on images with captions, index a folder of images, and search it by text.

Run on a CPU, in a minute:  pip install "modeling-mm[train,search]"; python examples/find_images.py [STEPS]
The three calls are the same as `modeling-mm train`, `index` and `search` on the command line.
"""

import csv
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from modeling_mm import cli

folder = Path("runs/find_images")
(folder / "images").mkdir(parents=True, exist_ok=True)
with open(folder / "captions.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["image", "caption"])
    for number in range(400):
        colour, shape = random.choice(["red", "green", "blue", "orange"]), random.choice(["circle", "square"])
        image, left, top = Image.new("RGB", (64, 64), "white"), random.randint(2, 30), random.randint(2, 30)
        draw = ImageDraw.Draw(image)
        (draw.ellipse if shape == "circle" else draw.rectangle)((left, top, left + 30, top + 30), fill=colour)
        image.save(folder / "images" / f"{colour}_{shape}_{number}.png")
        table.writerow([f"images/{colour}_{shape}_{number}.png", f"a {colour} {shape}"])

# With the Hub: "--vision_tower google/siglip2-base-patch16-224 --text_model answerdotai/ModernBERT-base"
training = f"""train --task retrieval --train_file {folder}/captions.csv --text_column caption
    --output_dir {folder}/model --vision_tower scratch-tiny --text_model scratch-tiny --per_device_train_batch_size 32
    --learning_rate 1e-3 --matching_weight 0 --max_steps {sys.argv[1] if len(sys.argv) > 1 else 150}
    --use_cpu true --report_to none --disable_tqdm true --save_strategy no"""
indexing = f"index --model {folder}/model --images {folder}/images --index {folder}/index"
search = ["search", "--index", f"{folder}/index", "--text", "a red circle", "--top_k", "5"]
for arguments in (training.split(), indexing.split(), search):
    if code := cli.main(arguments):
        sys.exit(code)
