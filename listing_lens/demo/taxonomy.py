"""The kinds of product of the made catalog, in a category tree from coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

CLOTHES = ("XS", "S", "M", "L", "XL")
SHOES = ("22.5cm", "23.0cm", "23.5cm", "24.5cm", "25.5cm", "26.5cm", "27.0cm", "28.0cm")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of product: where it stands in the tree, and what it costs when used, in yen."""

    name: str
    category: tuple[str, ...]
    price: tuple[int, int]
    # How often it has a pattern rather than one colour.
    patterned: float = 0.0
    # How often it carries an emblem.
    emblem: float = 0.0
    sizes: tuple[str, ...] = ()
    # Sellers photograph it on a hanger.
    hangs: bool = False


_ALL = [
    Kind("t-shirt", ("Fashion", "Tops", "T-shirts"), (500, 4500), patterned=0.5, emblem=0.6, sizes=CLOTHES, hangs=True),
    Kind("hoodie", ("Fashion", "Tops", "Hoodies"), (1500, 9000), patterned=0.25, emblem=0.6, sizes=CLOTHES, hangs=True),
    Kind("shirt", ("Fashion", "Tops", "Shirts"), (900, 6000), patterned=0.7, emblem=0.1, sizes=CLOTHES, hangs=True),
    Kind(
        "jacket",
        ("Fashion", "Outerwear", "Jackets"),
        (2500, 18000),
        patterned=0.3,
        emblem=0.4,
        sizes=CLOTHES,
        hangs=True,
    ),
    Kind("dress", ("Fashion", "Dresses", "Mini dresses"), (1200, 9800), patterned=0.75, sizes=CLOTHES, hangs=True),
    Kind("skirt", ("Fashion", "Bottoms", "Skirts"), (800, 6000), patterned=0.65, sizes=CLOTHES),
    Kind("jeans", ("Fashion", "Bottoms", "Jeans"), (1200, 9800), patterned=0.1, emblem=0.15, sizes=CLOTHES),
    Kind("sneakers", ("Fashion", "Shoes", "Sneakers"), (1500, 16000), patterned=0.25, emblem=0.7, sizes=SHOES),
    Kind("boots", ("Fashion", "Shoes", "Boots"), (2500, 18000), sizes=SHOES),
    Kind("heels", ("Fashion", "Shoes", "Heels"), (1200, 9800), patterned=0.2, sizes=SHOES),
    Kind("handbag", ("Fashion", "Bags", "Handbags"), (2500, 48000), patterned=0.3, emblem=0.5),
    Kind("backpack", ("Fashion", "Bags", "Backpacks"), (2000, 14000), patterned=0.35, emblem=0.6),
    Kind("tote", ("Fashion", "Bags", "Tote bags"), (600, 6500), patterned=0.45, emblem=0.6),
    Kind("cap", ("Fashion", "Accessories", "Caps"), (700, 5500), patterned=0.25, emblem=0.8),
    Kind("watch", ("Fashion", "Accessories", "Watches"), (2500, 60000)),
    Kind("sunglasses", ("Fashion", "Accessories", "Sunglasses"), (800, 12000)),
    Kind("umbrella", ("Fashion", "Accessories", "Umbrellas"), (700, 5000), patterned=0.6),
    Kind("mug", ("Home", "Kitchen", "Mugs"), (400, 3000), patterned=0.5, emblem=0.6),
    Kind("teapot", ("Home", "Kitchen", "Teapots"), (900, 7000), patterned=0.5, emblem=0.2),
    Kind("plate", ("Home", "Kitchen", "Plates"), (500, 5000), patterned=0.3, emblem=0.4),
    Kind("bottle", ("Home", "Kitchen", "Bottles"), (700, 4500), patterned=0.3, emblem=0.6),
    Kind("vase", ("Home", "Decor", "Vases"), (800, 8000), patterned=0.55),
    Kind("cushion", ("Home", "Decor", "Cushions"), (600, 4500), patterned=0.8, emblem=0.4),
    Kind("lamp", ("Home", "Lighting", "Table lamps"), (1500, 14000), patterned=0.35),
    Kind("chair", ("Home", "Furniture", "Chairs"), (2500, 22000), patterned=0.3),
    Kind("bear", ("Toys", "Plush", "Bears"), (700, 8000), patterned=0.15),
    Kind("rabbit", ("Toys", "Plush", "Rabbits"), (700, 8000), patterned=0.15),
    Kind("robot", ("Toys", "Figures", "Robots"), (1200, 18000), patterned=0.1, emblem=0.8),
    Kind("toy-car", ("Toys", "Vehicles", "Toy cars"), (400, 6000), patterned=0.2, emblem=0.5),
    Kind("blocks", ("Toys", "Building", "Blocks"), (800, 7000)),
    Kind("card", ("Hobby", "Trading cards", "Single cards"), (300, 30000), patterned=0.4, emblem=1.0),
    Kind("poster", ("Hobby", "Posters", "Art posters"), (500, 6000), patterned=0.4),
    Kind("book", ("Books", "Fiction", "Novels"), (300, 2200), patterned=0.4, emblem=0.9),
    Kind("guitar", ("Music", "Instruments", "Guitars"), (9000, 88000), patterned=0.15),
    Kind("game-pad", ("Electronics", "Games", "Controllers"), (1500, 7800), patterned=0.2, emblem=0.4),
    Kind("headphones", ("Electronics", "Audio", "Headphones"), (2500, 32000), emblem=0.5),
    Kind("camera", ("Electronics", "Cameras", "Film cameras"), (4000, 68000), patterned=0.2, emblem=0.4),
    Kind("phone-case", ("Electronics", "Phones", "Cases"), (400, 3500), patterned=0.7, emblem=0.6),
    Kind("ball", ("Sports", "Team sports", "Balls"), (500, 5000)),
    Kind("racket", ("Sports", "Tennis", "Rackets"), (1500, 15000)),
]
KINDS = {kind.name: kind for kind in _ALL}
