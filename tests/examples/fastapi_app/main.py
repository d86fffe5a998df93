"""A small API: what `uvicorn main:app` serves in the demo beside it."""

from __future__ import annotations

from fastapi import FastAPI, HTTPException

app = FastAPI()
items: dict[int, str] = {1: "a spanner"}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/items/{number}")
def item(number: int) -> dict[str, str]:
    if number not in items:
        raise HTTPException(status_code=404, detail=f"no item {number}")
    return {"name": items[number]}
