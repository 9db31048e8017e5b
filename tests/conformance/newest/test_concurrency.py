"""Many things at once through the asynchronous SDK, as its users write it: one event loop, no helper in between."""

import asyncio

from e2b import AsyncSandbox
from support import SANDBOX_LIFETIME_S

WIDTH = 6


def test_sandboxes_are_made_used_and_ended_concurrently(api):
    async def one(number: int) -> tuple[str, str]:
        sandbox = await AsyncSandbox.create(timeout=SANDBOX_LIFETIME_S, metadata={"number": str(number)})
        try:
            await sandbox.files.write("number", str(number))
            result = await sandbox.commands.run("cat number; hostname")
            assert result.stdout.startswith(str(number))
            return sandbox.sandbox_id, result.stdout.removeprefix(str(number)).strip()
        finally:
            await sandbox.kill()

    async def main() -> list[tuple[str, str]]:
        return await asyncio.gather(*(one(number) for number in range(WIDTH)))

    made = asyncio.run(main())
    assert len({sandbox_id for sandbox_id, _ in made}) == WIDTH
    assert all(sandbox_id == hostname for sandbox_id, hostname in made)


def test_one_sandbox_serves_many_streams(api):
    async def main() -> None:
        sandbox = await AsyncSandbox.create(timeout=SANDBOX_LIFETIME_S)
        try:
            seen: dict[int, str] = {number: "" for number in range(WIDTH)}

            def collect(number: int):
                return lambda chunk: seen.update({number: seen[number] + chunk})

            commands = [
                await sandbox.commands.run(f"seq {number} 7 2000", background=True, on_stdout=collect(number))
                for number in range(WIDTH)
            ]
            await asyncio.gather(*(command.wait() for command in commands))
            for number, text in seen.items():
                assert text.split() == [str(value) for value in range(number, 2001, 7)]
        finally:
            await sandbox.kill()

    asyncio.run(main())


def test_pauses_and_resumes_do_not_disturb_neighbours(api):
    async def cycle(sandbox: AsyncSandbox) -> None:
        for _ in range(2):
            assert await sandbox.pause()
            await sandbox.connect()

    async def main() -> None:
        steady, moving = await asyncio.gather(*(AsyncSandbox.create(timeout=SANDBOX_LIFETIME_S) for _ in range(2)))
        try:
            work = await steady.commands.run("seq 1 100000 | sha256sum", background=True)
            await cycle(moving)
            assert (await work.wait()).stdout.split()[0]
            assert (await moving.commands.run("echo moved")).stdout == "moved\n"
        finally:
            await asyncio.gather(steady.kill(), moving.kill())

    asyncio.run(main())
