# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tables as people have them, small and synthetic, whose columns have known kinds."""

import csv
import random

from .builders import drawing

CITIES, MATERIALS = ["Oslo", "Lima", "Cairo", "Quito"], ["oak", "steel", "glass"]
NOTES = ["some scratches on the side", "as good as new, never used", "a small part is missing", "cleaned last week"]
TEN_KINDS = {
    "item_id": "ignore",
    "photo": "image",
    "title": "text",
    "notes": "text",
    "price": "number",
    "weight": "number",
    "width": "number",
    "views": "number",
    "city": "category",
    "material": "category",
    "label": "label",
}


def write_rows(path, header, rows):
    """Write a CSV file; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return path


def write_ten_columns(folder, rows=60, name="t.csv", seed=0):
    """Images, two texts, four numbers, two categories, an id, and a label that the image's colour tells."""
    draw, table = random.Random(seed), []
    (folder / "img").mkdir(exist_ok=True)
    for i in range(rows):
        label = ("bad", "fine", "good")[i % 3]
        drawing((80 * (i % 3) + 40, draw.randrange(256), 90)).save(folder / "img" / f"{seed}_{i}.png")
        material = draw.choice(MATERIALS)
        table.append(
            [
                f"{seed}X{7919 * (i + 13) % 99991:05d}",
                f"img/{seed}_{i}.png",
                f"{material} {draw.choice(['chair', 'table', 'lamp', 'shelf'])} number {i}",
                None if i % 7 == 0 else f"{draw.choice(NOTES)}, {draw.choice(NOTES)}",
                f"{draw.uniform(5, 900):.2f}",
                None if i % 10 == 3 else f"{draw.uniform(0.1, 30):.1f}",
                draw.randrange(20, 200),
                draw.randrange(5000),
                draw.choice(CITIES),
                material,
                label,
            ]
        )
    return write_rows(folder / name, TEN_KINDS, table)


def titanic(rows=200):
    """The header and rows of passengers, as of the Kaggle table."""
    draw = random.Random(1)
    header = "PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Parch,Ticket,Fare,Cabin,Embarked".split(",")
    names = ["Braund", "Cumings", "Heikkinen", "Futrelle", "Allen", "Moran"]
    table = [
        [
            i + 1,
            draw.randrange(2),
            draw.randrange(1, 4),
            f"{draw.choice(names)}, Mr. {draw.choice(['Owen', 'John', 'William'])} {i}",
            draw.choice(["male", "female"]),
            draw.choice([None, f"{draw.uniform(0.5, 80):.1f}", draw.randrange(80)]),
            draw.randrange(6),
            draw.randrange(5),
            f"A/5{draw.randrange(10**6)}",
            f"{draw.uniform(5, 300):.4f}",
            draw.choice([None, None, f"{draw.choice('ABCDE')}{i}"]),
            draw.choice("SCQ"),
        ]
        for i in range(rows)
    ]
    kinds = ["ignore", "category", "category", "text", "category", "number", "number", "number", "ignore", "number"]
    return header, table, [*kinds, "ignore", "category"]


def housing(rows=200):
    """Houses for sale: zip codes, dates with a time, prices."""
    draw = random.Random(2)
    header = [
        "id",
        "date",
        "price",
        "bedrooms",
        "bathrooms",
        "sqft_living",
        "waterfront",
        "yr_built",
        "zipcode",
        "lat",
    ]
    table = [
        [
            draw.randrange(10**9, 10**10),
            f"2014{draw.randrange(1, 13):02d}{draw.randrange(1, 29):02d}T000000",
            f"{draw.randrange(75, 7000)}000",
            draw.randrange(1, 8),
            draw.randrange(2, 20) / 4,
            draw.randrange(300, 9000),
            draw.randrange(2),
            draw.randrange(1900, 2015),
            98001 + draw.randrange(40),
            f"{draw.uniform(47.1, 47.8):.4f}",
        ]
        for _ in range(rows)
    ]
    kinds = ["ignore", "date", "number", "number", "number", "number", "category", "number", "category", "number"]
    return header, table, kinds


def adult(rows=200):
    """Census rows with `?` for missing values."""
    draw = random.Random(3)
    header = ["age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "sex", "capital-gain"]
    header += ["hours-per-week", "native-country", "income"]
    table = [
        [
            draw.randrange(17, 90),
            draw.choice(["Private", "State-gov", "?"]),
            draw.randrange(12_000, 1_400_000),
            draw.choice(["Bachelors", "HS-grad", "11th", "Some-college"]),
            draw.randrange(1, 17),
            draw.choice(["Married-civ-spouse", "Never-married", "Divorced"]),
            draw.choice(["Male", "Female"]),
            draw.choice([0, 0, 0, 2174, 14084]),
            draw.randrange(1, 99),
            draw.choice(["United-States", "Cuba", "?"]),
            draw.choice(["<=50K", ">50K"]),
        ]
        for _ in range(rows)
    ]
    kinds = ["number", "category", "number", "category", "number", "category", "category", "number", "number"]
    return header, table, [*kinds, "category", "category"]


def petfinder(rows=200):
    """Pets: codes as whole numbers, hashes, free text."""
    draw = random.Random(4)
    header = ["Type", "Name", "Age", "Breed1", "Gender", "Color1", "Fee", "State", "RescuerID", "PhotoAmt", "PetID"]
    header += ["Description", "AdoptionSpeed"]
    table = [
        [
            draw.randrange(1, 3),
            draw.choice(["Milo", "Luna", None, "Coco", "Kitty"]),
            draw.randrange(100),
            draw.randrange(30),
            draw.randrange(1, 4),
            draw.randrange(1, 8),
            draw.choice([0, 0, 50, 100]),
            41000 + draw.randrange(300, 312),
            f"{draw.getrandbits(128):032x}",
            draw.randrange(12),
            f"{draw.getrandbits(36):09x}",
            f"{draw.choice(NOTES)}; found {i} days ago near the river, {draw.choice(NOTES)}",
            draw.randrange(5),
        ]
        for i in range(rows)
    ]
    kinds = ["category", "category", "number", "category", "category", "category", "number", "category", "ignore"]
    return header, table, [*kinds, "number", "ignore", "text", "number"]


def airbnb(rows=200):
    """Flats to rent: prices and shares as text, truth values as letters, web addresses."""
    draw = random.Random(5)
    header = ["id", "listing_url", "name", "host_id", "host_since", "host_response_rate", "host_is_superhost"]
    header += ["neighbourhood", "room_type", "latitude", "price", "last_review", "reviews_per_month", "license"]
    table = [
        [
            draw.randrange(1000, 10**8),
            f"https://www.airbnb.com/rooms/{i}",
            f"Sunny loft {i} by the {draw.choice(['park', 'canal'])}",
            draw.randrange(1000, 10**8),
            f"20{draw.randrange(10, 22)}-{draw.randrange(1, 13):02d}-{draw.randrange(1, 29):02d}",
            draw.choice(["N/A", f"{draw.randrange(40, 101)}%"]),
            draw.choice("tf"),
            draw.choice(["Jordaan", "De Pijp", "Old West"]),
            draw.choice(["Entire home/apt", "Private room", "Shared room"]),
            f"{draw.uniform(52.3, 52.4):.5f}",
            f"${draw.uniform(30, 2500):,.2f}",
            None if i % 5 == 0 else f"{draw.randrange(1, 29)}/{draw.randrange(1, 13)}/2021",
            None if i % 5 == 0 else f"{draw.uniform(0, 9):.2f}",
            None,
        ]
        for i in range(rows)
    ]
    kinds = ["ignore", "ignore", "text", "ignore", "date", "number", "category", "category", "category", "number"]
    return header, table, [*kinds, "number", "date", "number", "ignore"]


KNOWN = [titanic, housing, adult, petfinder, airbnb]
