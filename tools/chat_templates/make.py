"""Renders templates as transformers does and writes what the tests of chat templates expect.

    python3 tools/chat_templates/make.py > crates/deltaloom-lm/src/text/template/cases.json

Needs jinja2. Settings, filters and functions are those of transformers' `chat_template_utils`:
trim_blocks, lstrip_blocks, loop controls, `tojson` as json.dumps, `raise_exception`, and blocks
named `generation` that render what is in them.
"""

import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def render(source, messages, tools, answer, variables):
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(source)
    return template.render(
        messages=messages, tools=tools, documents=None, add_generation_prompt=answer,
        bos_token="<s>", eos_token="</s>", **variables,
    )


def message(role, content, **more):
    return {"role": role, "content": content, **more}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city: <b>\"now\"</b> & 'later', größer",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
            "limits": [0.5, 1e-7, 1e16, 2.0, -0.0, True, None, [], {}],
        },
    },
}

CONVERSATIONS = {
    "one question": ([message("user", "Hello!")], None, True, {}),
    "system": ([message("system", "  Be short. "), message("user", "Zeit?\n"), message("assistant", "Spät – 日本")], None, False, {}),
    "two turns": ([message("user", " a "), message("assistant", "b"), message("user", "c")], None, True, {}),
    "roles in disorder": ([message("assistant", "b"), message("user", "c")], None, True, {}),
    "tools": (
        [
            message("system", "Use them."),
            message("user", "Weather?"),
            message("assistant", "", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}]),
            message("tool", "sun"),
            message("tool", "rain"),
            message("assistant", "Both."),
            message("user", "Thanks"),
        ],
        [TOOL, TOOL],
        True,
        {},
    ),
    "calls": ([message("user", "?"), message("assistant", "I ask.", tool_calls=[{"name": "f", "arguments": {}}])], [TOOL], False, {}),
    "thoughts": (
        [
            message("user", "<result>1</result>"),
            message("assistant", "<think>\nold\n</think>\n\nfirst"),
            message("user", "Why?"),
            message("assistant", "<think>\nhm\n\n</think>\n\nbecause"),
            message("user", "<result>2</result>"),
            message("assistant", "so", thought="\nnew\n"),
        ],
        None,
        True,
        {"enable_thinking": False},
    ),
}


def main():
    folder = pathlib.Path(__file__).parent
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        for name, (messages, tools, answer, variables) in CONVERSATIONS.items():
            # As text, so that the order of keys is kept by every reader.
            texts = [json.dumps(part) for part in (messages, tools, variables)]
            case = {"template": path.stem, "name": name, "answer": answer}
            case |= dict(zip(["messages", "tools", "variables"], texts))
            try:
                case["text"] = render(path.read_text(), messages, tools, answer, variables)
            except (jinja2.exceptions.TemplateError, TypeError) as error:
                case["error"] = str(error)
            cases.append(case)
    print(json.dumps(cases, ensure_ascii=False, indent=1))


main()
