"""BentoML: one worker."""

import bentoml


@bentoml.service(workers=1, traffic={"timeout": 60})
class Noop:
    @bentoml.api
    async def predict(self, input: str) -> dict[str, str]:  # noqa: A002 (the field's name)
        return {"output": input}
