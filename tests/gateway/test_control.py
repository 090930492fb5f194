"""The line to a running gateway: a successor's is not taken down with its predecessor's."""

import asyncio
import socket
from typing import Any

import pytest

from dialoop.core.errors import UserError
from dialoop.gateway import control

Json = dict[str, Any]


def test_a_gateway_that_ends_leaves_its_successor_s_line_alone() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]

            def desk(name: str) -> control.Desk:
                async def obey(order: Json) -> Json:
                    return {"name": name, "did": order["do"]}

                return control.Desk(port, listening, obey)

            async def ask(do: str) -> Json:
                return (await asyncio.to_thread(control.ask, port, {"do": do}))[0]

            old, new = desk("old"), desk("new")
            old.open()
            assert await ask("status") == {"name": "old", "did": "status"}
            assert await ask("drain") == {"name": "old", "did": "drain"}
            new.open()
            await old.close()
            assert await ask("status") == {"name": "new", "did": "status"}
            await new.close()
            with pytest.raises(UserError, match=f"no gateway of yours runs on port {port}"):
                await ask("status")

    asyncio.run(work())


def test_a_taken_socket_is_the_one_that_listens() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]

            async def obey(order: Json) -> Json:
                return {"taken": True} if order["do"] == "take" else {"failed": "no", "hint": "so"}

            desk = control.Desk(port, listening, obey)
            desk.open()
            _, taken = await asyncio.to_thread(control.ask, port, {"do": "take"})
            assert taken is not None
            with taken:
                assert taken.getsockname() == listening.getsockname()
            with pytest.raises(UserError, match="no") as caught:
                await asyncio.to_thread(control.ask, port, {"do": "other"})
            assert caught.value.hint == "so"
            await desk.close()

    asyncio.run(work())
