"""A handler whose steps do nothing, for `bench.handlers`."""

from worker.handlers import Run, handler


async def nothing(number: int) -> int:
    return number


@handler("empty-steps")
async def empty_steps(run: Run, input: int) -> int:
    for number in range(input):
        await run.step("nothing", nothing, number)
    return input
