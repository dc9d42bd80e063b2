"""Option models are built when they are first used, also where several threads do that at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from pydantic import GetPydanticSchema

from backend.options import Frozen

inside, most = [], []


def slowly(source, handler):
    inside.append(source)
    most.append(len(inside))
    time.sleep(0.05)
    inside.pop()
    return handler(source)


class Late(Frozen):
    """Takes its time until it can validate."""

    width: Annotated[int, GetPydanticSchema(slowly)]


def test_a_model_is_built_at_its_first_use_and_by_one_thread():
    assert not most
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(Late.model_validate, [{"width": "3"}] * 4))
    assert [late.width for late in made] == [3] * 4
    assert most == [1]
