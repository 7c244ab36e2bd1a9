"""All formats by name, and which one a chat template stands for."""

from collections.abc import Callable

from astraea_local.api.tool_formats.base import ToolFormat
from astraea_local.api.tool_formats.harmony import Harmony
from astraea_local.api.tool_formats.json_calls import JsonCalls
from astraea_local.api.tool_formats.named_calls import NamedCalls
from astraea_local.api.tool_formats.pythonic import Pythonic
from astraea_local.api.tool_formats.tagged import Tagged

HERMES = JsonCalls("hermes", "<tool_call>\n", "\n</tool_call>")
JSON = JsonCalls(
    "json", "<tool_call>\n", "\n</tool_call>", bare=True, other_openings=("```json", "[TOOL_CALLS]")
)

_ALL: tuple[ToolFormat, ...] = (
    HERMES,
    JSON,
    JsonCalls(
        "llama3",
        "",
        "",
        between="; ",
        arguments_key="parameters",
        bare=True,
        other_openings=("<|python_tag|>",),
    ),
    JsonCalls("mistral_nemo", "[TOOL_CALLS]", "", array=True),
    JsonCalls("granite", "<|tool_call|>", "", array=True),
    JsonCalls("nemotron", "<TOOLCALL>", "</TOOLCALL>", array=True),
    JsonCalls("tool_calls", "<tool_calls>", "</tool_calls>", array=True),
    JsonCalls("firefunction", " functools", "", array=True),
    JsonCalls("gigachat", "<|function_call|>", ""),
    JsonCalls(
        "cohere",
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        array=True,
        name_key="tool_name",
        arguments_key="parameters",
    ),
    NamedCalls("mistral", "[TOOL_CALLS]", "[ARGS]", name_ends=("[CALL_ID]",)),
    NamedCalls(
        "deepseek",
        "<｜tool▁call▁begin｜>",
        "\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        between="\n",
        prefixes=("function<｜tool▁sep｜>",),
    ),
    NamedCalls(
        "deepseek_v31",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
    ),
    NamedCalls(
        "kimi",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        prefixes=("functions.",),
        numbered=True,
    ),
    NamedCalls("functionary", "<function=", ">", "</function>"),
    Tagged(
        "qwen_coder",
        call="<function=",
        call_end=">\n",
        key="<parameter=",
        key_end=">",
        value="\n",
        value_end="\n</parameter>\n",
        call_close="</function>",
        opening="<tool_call>\n",
        closing="\n</tool_call>",
        between="\n",
    ),
    Tagged(
        "seed",
        call="<function=",
        call_end=">\n",
        key="<parameter=",
        key_end=">",
        value="",
        value_end="</parameter>\n",
        call_close="</function>",
        opening="<seed:tool_call>\n",
        closing="\n</seed:tool_call>",
        between="\n",
    ),
    Tagged(
        "minimax",
        call='<invoke name="',
        call_end='">\n',
        key='<parameter name="',
        key_end='">',
        value="",
        value_end="</parameter>\n",
        call_close="</invoke>\n",
        opening="<minimax:tool_call>\n",
        closing="</minimax:tool_call>",
    ),
    Tagged(
        "minicpm",
        call='<function name="',
        call_end='">',
        key='<param name="',
        key_end='">',
        value="",
        value_end="</param>",
        call_close="</function>",
        between="\n",
    ),
    Tagged(
        "dsml",
        call='<｜DSML｜invoke name="',
        call_end='">\n',
        key='<｜DSML｜parameter name="',
        key_end='"',
        value="",
        value_end="</｜DSML｜parameter>\n",
        call_close="</｜DSML｜invoke>\n",
        opening="<｜DSML｜function_calls>\n",
        closing="</｜DSML｜function_calls>",
        typed=True,
    ),
    Tagged(
        "dsml_v4",
        call='<｜DSML｜invoke name="',
        call_end='">\n',
        key='<｜DSML｜parameter name="',
        key_end='"',
        value="",
        value_end="</｜DSML｜parameter>\n",
        call_close="</｜DSML｜invoke>\n",
        opening="<｜DSML｜tool_calls>\n",
        closing="</｜DSML｜tool_calls>",
        typed=True,
    ),
    Tagged(
        "glm",
        call="<tool_call>",
        call_end="\n",
        key="<arg_key>",
        key_end="</arg_key>",
        value="\n<arg_value>",
        value_end="</arg_value>\n",
        call_close="</tool_call>",
        between="\n",
    ),
    Tagged(
        "glm_47",
        call="<tool_call>",
        call_end="",
        key="<arg_key>",
        key_end="</arg_key>",
        value="<arg_value>",
        value_end="</arg_value>",
        call_close="</tool_call>",
    ),
    Pythonic("pythonic"),
    Pythonic("lfm2", "<|tool_call_start|>", "<|tool_call_end|>"),
    Harmony(),
)
FORMATS: dict[str, ToolFormat] = {format_.name: format_ for format_ in _ALL}

# What gives a format away, the more particular first.
_SIGNS: tuple[tuple[str, str | Callable[[str], bool]], ...] = (
    ("harmony", lambda t: "<|channel|>" in t and "<|message|>" in t),
    ("dsml_v4", lambda t: "｜DSML｜" in t and "tool_calls" in t and "function_calls" not in t),
    ("dsml", "｜DSML｜"),
    ("deepseek", lambda t: "<｜tool▁sep｜>" in t and "```json" in t),
    ("deepseek_v31", "<｜tool▁sep｜>"),
    ("kimi", "<|tool_call_begin|>"),
    ("mistral", lambda t: "[TOOL_CALLS]" in t and "[ARGS]" in t),
    ("mistral_nemo", "[TOOL_CALLS]"),
    ("minimax", "<minimax:tool_call>"),
    ("seed", "<seed:tool_call>"),
    ("glm_47", lambda t: "<arg_key>" in t and "</arg_key><arg_value>" in t),
    ("glm", "<arg_key>"),
    ("qwen_coder", lambda t: "<function=" in t and "<parameter=" in t),
    ("minicpm", '<param name="'),
    ("functionary", "<function="),
    ("cohere", "<|START_ACTION|>"),
    ("nemotron", "<TOOLCALL>"),
    ("tool_calls", "<tool_calls>"),
    (
        "lfm2",
        lambda t: any(m in t for m in ("<|tool_call_start|>", "<|tool_list_start|>", "keep_past_thinking")),
    ),
    ("hermes", lambda t: "<tool_call>" in t and "<]minimax[>[" not in t),
    ("granite", "<|tool_call|>"),
    ("firefunction", "functools["),
    ("gigachat", "<|function_call|>"),
    ("llama3", lambda t: "<|python_tag|>" in t or '"parameters": dictionary of argument name' in t),
    ("pythonic", "func_name1(params_name1"),
)


def format_of(template: str) -> ToolFormat:
    """The format that a chat template asks for; plain JSON where it shows none that we know."""
    for name, sign in _SIGNS:
        if sign in template if isinstance(sign, str) else sign(template):
            return FORMATS[name]
    return JSON if "tools" in template else HERMES
