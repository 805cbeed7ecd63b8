"""A model's tokenizer and chat template without transformers: `tokenizers` and jinja2 load in 0.05 s, transformers' takes 4 s and torch.

Does what jobs.encoding asks of a tokenizer, and as transformers does it (a test holds it to that). Renders templates in jinja2's
sandbox; run it in a process of its own with limits (jobs.preview), for a template is a program of the model's.
"""

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

FILE, CONFIG, LEGACY = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
MAX_FILE_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Names under which files give a message's reasoning; templates read the first, gpt-oss's the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


class NoTokenizer(ValueError):
    """The folder has none that can be used here; the message says why."""


class LightTokenizer:
    """A fast tokenizer from a model's folder."""

    is_fast = True

    def __init__(self, folder: Path, chat_template: str | None = None):
        """Raises NoTokenizer. `chat_template`: one to use in place of the model's own."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise NoTokenizer("the package tokenizers is not installed") from None
        if not (folder / FILE).is_file():
            raise NoTokenizer(f"the model's folder has no {FILE}")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library has no type of its own for what is wrong with a file
            raise NoTokenizer(f"its {FILE} cannot be read: {str(error)[:200]}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = {**_json(folder / LEGACY), **_json(folder / CONFIG)}
        self.special_tokens_map = {name: token for name in SPECIAL if (token := _token(config.get(name)))}
        self._named = list(dict.fromkeys([*self.special_tokens_map.values(), *_more_tokens(config)]))
        self.chat_template: str | dict[str, str] | None = chat_template or _template(folder, config)

    def __call__(self, text: str, *, add_special_tokens: bool = True, return_offsets_mapping: bool = False) -> Mapping[str, Any]:  # fmt: skip
        """Tokens, and where they stand in the text when that is asked."""
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        found: dict[str, Any] = {"input_ids": encoded.ids}
        return found | ({"offset_mapping": encoded.offsets} if return_offsets_mapping else {})

    @property
    def all_special_tokens(self) -> list[str]:
        return self._named

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    @cached_property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        return dict(self._tokenizer.get_added_tokens_decoder())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones too."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tools: Any = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """The conversation as text."""
        assert not tokenize
        messages = [_with_reasoning(message) for message in conversation]
        template = self._compiled("tool_use" if tools else "default")
        return str(
            template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens_map,
            )
        )

    def _compiled(self, name: str) -> Any:
        if not hasattr(self, "_templates"):
            self._templates: dict[str, Any] = {}
        if name not in self._templates:
            source = self.chat_template
            if isinstance(source, dict):
                source = source.get(name) or source.get("default")
            if source is None:
                raise ValueError("the tokenizer has no default chat template")
            self._templates[name] = compiled(source)
        return self._templates[name]

    def _id(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        found = self._tokenizer.token_to_id(token) if token else None
        return None if found is None else int(found)


def compiled(source: str) -> Any:
    """A chat template, ready to render, with what transformers gives to templates. Raises ValueError for one that is no Jinja."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: marks that TRL's masks need; to a rendering they are nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"is not a Jinja template: line {error.lineno}: {error.message}") from None


def read_template(path: Path) -> str:
    """The text of a chat template's file, when it is one. Raises ValueError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TEMPLATE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if len(raw) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"is larger than {MAX_TEMPLATE_BYTES >> 20} MiB; a chat template is a small Jinja file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text; a chat template is a small Jinja file") from None
    if "messages" not in text:
        raise ValueError("is not a chat template: it never mentions `messages`")
    compiled(text)
    return text


def template_file(paths: Mapping[str, str]) -> Path | None:
    """The file of a job's chat template, where it is not the model's own: one that it names, or the one its adapters learnt with."""
    if "chat_template" in paths:
        return Path(paths["chat_template"])
    adapters = [Path(place) for name, place in paths.items() if name == "adapter" or name.startswith("adapters.")]
    beside = [folder / TEMPLATE for folder in adapters]
    if not beside or not all(file.is_file() for file in beside):
        return None
    # several that learnt with different ones have the model's own in common
    return beside[0] if len({file.read_bytes() for file in beside}) == 1 else None


def _template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The model's own: files where there are some, else what its configuration says."""
    found: dict[str, str] = {}
    own = config.get("chat_template")
    if isinstance(own, str):
        found["default"] = own
    elif isinstance(own, list):
        found |= {str(each["name"]): str(each["template"]) for each in own if isinstance(each, dict) and {"name", "template"} <= set(each)}  # fmt: skip
    if (folder / TEMPLATE).is_file():
        found["default"] = (folder / TEMPLATE).read_text(encoding="utf-8")
    if (folder / MORE_TEMPLATES).is_dir():
        found |= {file.stem: file.read_text(encoding="utf-8") for file in (folder / MORE_TEMPLATES).glob("*.jinja")}
    if set(found) <= {"default"}:
        return found.get("default")
    return found


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _more_tokens(config: Mapping[str, Any]) -> Iterable[str]:
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(name) or ()
        for each in value.values() if isinstance(value, dict) else value:
            if token := _token(each):
                yield token


def _token(value: Any) -> str:
    """A token's text: older files have it inside an object."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
