#!/usr/bin/env python3
"""The openai package and curl against `deltaloom serve`: texts, streams, errors by class, retries, many at a time.
`just check-clients` calls it."""

import argparse
import asyncio
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import openai

from loom_server import serving

PROMPT = "Once upon a time"


def client(url: str, **options: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="not-needed", max_retries=0, **options)


def check_completions(url: str) -> None:
    ask = client(url).completions.create
    whole = ask(model="pirate", prompt=PROMPT, max_tokens=24, temperature=0)
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.completion_tokens <= 24
    again = ask(model="pirate", prompt=PROMPT, max_tokens=24, temperature=0)
    assert again.choices[0].text == whole.choices[0].text and again.id != whole.id
    other = ask(model="base", prompt=PROMPT, max_tokens=24, temperature=0)
    assert other.system_fingerprint != whole.system_fingerprint

    parts = list(
        ask(model="pirate", prompt=PROMPT, max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert parts[-1].choices == [] and parts[-1].usage == whole.usage, parts[-1]

    echoed = ask(model="pirate", prompt=PROMPT, max_tokens=3, temperature=0, echo=True, logprobs=2)
    scores = echoed.choices[0].logprobs
    assert scores.token_logprobs[0] is None and all(score < 0 for score in scores.token_logprobs[1:])
    # The first token is special: it has no text.
    assert "".join(scores.tokens[1:]) == echoed.choices[0].text and echoed.choices[0].text.startswith(PROMPT)
    several = ask(model="pirate", prompt=[PROMPT, "The king"], max_tokens=4, n=2, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


def check_chat(url: str) -> None:
    chat = client(url).chat.completions
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    whole = chat.create(model="chat", messages=messages, max_completion_tokens=40, temperature=0, logprobs=True, top_logprobs=3)
    message = whole.choices[0].message
    assert message.role == "assistant" and message.content
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    text = ""
    for part in chat.create(model="chat", messages=messages, max_completion_tokens=40, temperature=0, stream=True):
        text += part.choices[0].delta.content or ""
    assert text == message.content


def check_errors(url: str) -> None:
    api = client(url)

    def fails(kind: type[openai.APIStatusError], **arguments: object) -> openai.APIStatusError:
        arguments = {"model": "base", "prompt": PROMPT, "max_tokens": 1} | arguments
        try:
            api.completions.create(**arguments)
        except kind as error:
            assert error.body["message"], error
            return error
        raise AssertionError(f"{arguments}: no error")

    assert fails(openai.NotFoundError, model="nobody").code == "model_not_found"
    assert fails(openai.BadRequestError, max_tokens=-1).param == "max_tokens"
    assert fails(openai.BadRequestError, temperature=9e9).param == "temperature"
    assert fails(openai.BadRequestError, prompt=[1, 2, 10**9]).param == "prompt"
    assert fails(openai.BadRequestError, prompt="word " * 5000).code == "context_length_exceeded"
    raw = api.models.with_raw_response.list(extra_headers={"x-request-id": "check-17"})
    assert raw.headers["x-request-id"] == "check-17"
    assert {"base", "pirate", "chat"} >= {model.id for model in raw.parse().data} > {"pirate"}


def check_retries(program: str, tenants: list[str]) -> None:
    """Of many requests at a time some are refused, and the package asks again."""
    with serving(program, "demo", *tenants, "--max-running", "1", "--max-waiting", "2") as server:
        url = server.url

        def ask(retries: int) -> bool:
            api = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=retries)
            try:
                api.completions.create(model="pirate", prompt=PROMPT, max_tokens=60)
            except openai.RateLimitError as error:
                assert int(error.response.headers["retry-after"]) >= 1
                assert error.response.headers["x-should-retry"] == "true"
                return False
            return True

        with ThreadPoolExecutor(12) as pool:
            impatient = list(pool.map(ask, [0] * 12))
            patient = list(pool.map(ask, [10] * 12))
        assert not all(impatient) and all(patient), (impatient, patient)


async def check_async(url: str) -> None:
    api = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-")

    async def ask(model: str, number: int) -> str:
        answer = await api.completions.create(model=model, prompt=PROMPT, max_tokens=30, seed=number)
        return answer.choices[0].text

    jobs = [(model, number) for number in range(8) for model in ("base", "pirate", "chat")]
    together = await asyncio.gather(*(ask(*job) for job in jobs))
    alone = [await ask(*job) for job in jobs]
    assert together == alone
    # A client that leaves in the middle holds up nobody.
    stream = await api.completions.create(model="pirate", prompt=PROMPT, max_tokens=200, stream=True)
    async for _ in stream:
        break
    await stream.close()
    assert await ask(*jobs[0]) == alone[0]


def check_curl(url: str) -> None:
    body = json.dumps({"model": "pirate", "prompt": PROMPT, "max_tokens": 3, "stream": True, "ignore_eos": True})
    command = ["curl", "-sN", f"{url}/v1/completions", "-H", "content-type: application/json", "-d", body]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and len(events) >= 5
    assert all(event.startswith("data: {") for event in events[:-2])
    for path in ("/health", "/ready", "/metrics", "/openapi.json", "/"):
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url + path]
        assert subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout == "200", path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default="target/release/deltaloom")
    program = parser.parse_args().program
    tenants = ["--tenant", "demo:pirate", "--tenant", "demo:chat"]
    with serving(program, "demo", *tenants) as server:
        url = server.url
        for check in (check_completions, check_chat, check_errors, check_curl):
            check(url)
            print(check.__name__, "ok", flush=True)
        asyncio.run(check_async(url))
        print("check_async ok", flush=True)
    check_retries(program, tenants)
    print("check_retries ok")


if __name__ == "__main__":
    main()
