"""FastAPI under uvicorn: a typed body, a typed answer, the model in a plain function, which FastAPI runs on its threads."""

from __future__ import annotations

import handlers
from fastapi import FastAPI
from pydantic import BaseModel, create_model

Row = create_model("Row", **{name: (str if kind == "string" else float, ...) for name, kind in handlers.COLUMNS.items()})


class Answer(BaseModel):
    answer: list[float] if handlers.ANSWER_SIZE > 1 else float


app = FastAPI()
model = handlers.load()


def predict(row: Row) -> Answer:
    return Answer(answer=handlers.answer(model.records([row.__dict__])[0]))


# The types are made here, so that the annotations must be the types themselves.
predict.__annotations__ = {"row": Row, "return": Answer}
app.post("/predict")(predict)
