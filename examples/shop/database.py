"""Products and orders in SQLite, in a file that goes when the shop closes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

PRODUCTS = 200


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    category: Mapped[str] = mapped_column(index=True)
    price_cents: Mapped[int]


class Order(Base):
    __tablename__ = "order"

    id: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id"), index=True)
    quantity: Mapped[int]
    email: Mapped[str]


class Database:
    """A database of one process: several workers would each have their own."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="shop-")
        self.engine = create_engine(f"sqlite:///{Path(self._folder.name) / 'shop.db'}")

    def seed(self) -> None:
        Base.metadata.create_all(self.engine)
        dice = random.Random(1)
        with Session(self.engine) as session, session.begin():
            session.add_all(
                Product(
                    id=number,
                    name=f"{dice.choice(('Oak', 'Pine', 'Steel'))} {dice.choice(('chair', 'table', 'lamp'))} {number}",
                    category=dice.choice(("indoor", "outdoor", "office")),
                    price_cents=dice.randrange(900, 90_000, 10),
                )
                for number in range(1, PRODUCTS + 1)
            )
            session.flush()
            session.add_all(
                Order(product_id=dice.randint(1, PRODUCTS), quantity=dice.randint(1, 4), email="first@example.com")
                for _ in range(500)
            )

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.engine.dispose()
        self._folder.cleanup()


def session(request: Request) -> Iterator[Session]:
    with Session(request.app.state.database.engine) as opened:
        yield opened


SessionOf = Annotated[Session, Depends(session)]
