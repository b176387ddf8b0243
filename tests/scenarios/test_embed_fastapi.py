from __future__ import annotations

import httpx

from scenarios.examples.embed_fastapi import SWARMS, app, lifespan


async def test_two_swarms_answer_from_one_app_and_share_the_work_among_their_own_agents() -> None:
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answers = [(await client.post("/numbers/mean", json={"values": [1, 2, 6]})).json() for _ in range(4)]
        assert [answer["result"] for answer in answers] == [3.0] * 4
        assert sorted(answer["performed_by"] for answer in answers) == ["numbers-1"] * 2 + ["numbers-2"] * 2
        largest = await client.post("/others/largest", json={"values": [1, 2, 6]})
        assert largest.json() == {"result": 6.0, "performed_by": "others-1"}
        assert (await client.post("/nobody/mean", json={"values": [1]})).status_code == 404
        assert (await client.post("/numbers/mean", json={"values": []})).status_code == 422
    assert SWARMS == {}
