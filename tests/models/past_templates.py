"""Chat templates in the manner of their publishers that differ in what they do to the past: what they keep of its reasoning.

Each is written anew and short; together with those of `chat_templates` they are what the law of prompts is tested on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kvchat.models.text.template import ChatTemplate
from kvchat.models.text.tokenizer import ChatTokenizer
from tests.models.chat_templates import NOON, SAMPLES, byte_tokenizer

_IM = "<|im_start|> <|im_end|>"
_ASK = "{% if add_generation_prompt %}"


@dataclass(frozen=True, slots=True)
class Past:
    """One template. `special` and `plain` are the added tokens that are marked special and those that are not.

    `keeps` says that all reasoning of the past stays in the prompt; `marks` where reasoning begins and ends.
    """

    name: str
    source: str
    special: str
    plain: str = ""
    keeps: bool = False
    marks: tuple[str, str] | None = ("<think>", "</think>")

    def template(self, now: datetime = NOON) -> ChatTemplate:
        tokenizer = ChatTokenizer(
            byte_tokenizer(("<s>", "</s>", *self.special.split()), self.plain.split()),
            names={"bos_token": "<s>", "eos_token": "</s>"},
            control_text=self.source,
        )
        return ChatTemplate(self.source, tokenizer, now=now)


_LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
_SPLIT = (
    "{% set thought = '' %}{% set said = m.content %}{% if m.reasoning_content is string %}"
    "{% set thought = m.reasoning_content %}{% elif '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)

PAST = (
    Past(
        "all in the content",  # as SmolLM3
        "{% set mode = '/think' %}{% set head = '' %}{% if messages[0].role == 'system' %}{% set head = messages[0].content %}"
        "{% if '/no_think' in head %}{% set mode = '/no_think' %}{% endif %}{% endif %}"
        "{{ '<|im_start|>system\n## Metadata\nReasoning Mode: ' + mode + '\n\n' + head + '<|im_end|>\n' }}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
        "{% elif m.role == 'assistant' %}{% if mode == '/think' %}{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') }}"
        "{% else %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content.lstrip('\n') }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<|im_start|>assistant\n' if mode == '/think' else '<|im_start|>assistant\n<think>\n\n</think>\n' }}}}"
        "{% endif %}",
        _IM,
        "<think> </think>",
        keeps=True,
    ),
    Past(
        "roles in brackets",  # as Granite 3.3
        "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}{% endfor %}"
        "{# it thinks in <think></think> and answers in <response></response> #}",
        "<|start_of_role|> <|end_of_role|> <|end_of_text|>",
        keeps=True,
    ),
    Past(
        "beside the content, always",  # as Seed-OSS
        "{% for m in messages %}{{ bos_token + m.role }}{% if m.role == 'assistant' %}"
        "{% if m.reasoning_content is string and m.reasoning_content | trim | length > 0 %}"
        "{{ '\n<seed:think>' + m.reasoning_content | trim + '</seed:think>' }}{% endif %}"
        "{% if m.content is string %}{{ '\n' + m.content | trim + eos_token }}{% endif %}"
        "{% else %}{{ '\n' + m.content + eos_token }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ bos_token + 'assistant\n' }}}}{{% endif %}}",
        "<seed:think> </seed:think>",
        keeps=True,
        marks=("<seed:think>", "</seed:think>"),
    ),
    Past(
        "a separator",  # as Phi-4-reasoning
        "<|im_start|>system<|im_sep|>Think between <think> and </think>, then answer.<|im_end|>{% for m in messages %}"
        "{% if m.role == 'system' %}{{ '<|im_start|>system<|im_sep|>' + m.content + '<|im_end|>' }}"
        "{% elif m.role == 'user' %}{{ '<|im_start|>user<|im_sep|>' + m.content + '<|im_end|>' }}"
        "{% else %}{{ '<|im_start|>assistant<|im_sep|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<|im_start|>assistant<|im_sep|>' }}}}{{% endif %}}",
        f"{_IM} <|im_sep|>",
        "<think> </think>",
        keeps=True,
    ),
    Past(
        "blocks or a text",  # as Ministral reasoning
        "{{ bos_token }}{% set ns = namespace(turn=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% if ns.turn % 2 != 0 %}{{ raise_exception('roles must alternate') }}{% endif %}{% set ns.turn = ns.turn + 1 %}"
        "{{ '[INST]' }}{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}{{ b['text'] }}{% endfor %}"
        "{% endif %}{{ '[/INST]' }}{% elif m.role == 'assistant' %}{% set ns.turn = ns.turn + 1 %}"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}{% if b['type'] == 'text' %}"
        "{{ b['text'] }}{% else %}{{ '[THINK]' + b['thinking'] + '[/THINK]' }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}"
        "{% else %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{% endif %}{% endfor %}",
        "[INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [THINK] [/THINK]",
        keeps=True,
        marks=("[THINK]", "[/THINK]"),
    ),
    Past(
        "the past apart from what follows",  # as Kimi K2 thinking
        "{% set ns = namespace(cut=-1) %}{% for m in messages %}{% if m.role == 'assistant' and not m.tool_calls %}"
        "{% set ns.cut = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages[:ns.cut + 1] %}{{ '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' }}"
        "{% if m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
        "{% for m in messages[ns.cut + 1:] %}{{ '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' }}"
        "{% if m.role == 'assistant' %}{{ '<think>' + m.get('reasoning_content', '') + '</think>' }}{% endif %}"
        "{{ m.content + '<|im_end|>' }}{% endfor %}"
        f"{_ASK}{{{{ '<|im_assistant|>assistant<|im_middle|>' }}}}{{% endif %}}",
        "<|im_system|> <|im_user|> <|im_assistant|> <|im_middle|> <|im_end|>",
        "<think> </think>",
    ),
    Past(
        "an end without a beginning",  # as DeepSeek V3.2
        "{% if not thinking is defined %}{% set thinking = enable_thinking if enable_thinking is defined else false %}{% endif %}"
        f"{_LAST_USER}{{{{ bos_token }}}}{{% for m in messages %}}{{% if m.role == 'system' %}}{{{{ m.content }}}}"
        "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜>' }}"
        "{% if loop.index0 > ns.last and thinking %}{{ '<think>' }}{% if m['reasoning_content'] %}{{ m['reasoning_content'] }}"
        "{% endif %}{% endif %}{{ '</think>' + m.content + eos_token }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}}}{{% endif %}}",
        "",
        "<｜User｜> <｜Assistant｜> <think> </think>",
    ),
    Past(
        "what was thought since the last question",  # as LFM2.5
        f"{_LAST_USER}{{{{ bos_token }}}}{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\n' }}}}"
        "{% if m.role == 'assistant' %}{% if m.thinking is defined and loop.index0 > ns.last %}"
        "{{ '<think>' + m.thinking + '</think>' }}{% endif %}{% set said = m.content %}"
        "{% if loop.index0 <= ns.last and '</think>' in said %}{% set said = said.split('</think>')[-1] | trim %}{% endif %}"
        "{{ said }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        f"{_ASK}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}",
        _IM,
        "<think> </think>",
    ),
    Past(
        "only the last answer's",  # its template of n messages keeps what that of all strips
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'assistant' %}{% set ns.last = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}{% set said = m.content %}"
        "{% if m.role == 'assistant' and loop.index0 != ns.last and '</think>' in said %}"
        "{% set said = said.split('</think>')[-1] | trim %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
        f"{_ASK}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}",
        _IM,
        "<think> </think>",
    ),
    Past(
        "tags for roles",  # as Laguna
        "{% set enable_thinking = enable_thinking if enable_thinking is defined else true %}{% for m in messages %}"
        "{% if m.role == 'assistant' %}{{ '<assistant>' }}{% set thought = '' %}{% if m.reasoning is string %}"
        "{% set thought = m.reasoning %}{% endif %}{% if enable_thinking %}{{ '<think>' + thought + '</think>' }}"
        "{% else %}{{ '</think>' }}{% endif %}{{ m.content + '</assistant>\n' }}"
        "{% else %}{{ '<' + m.role + '>' + m.content + '</' + m.role + '>\n' }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<assistant>' + ('<think>' if enable_thinking else '</think>') }}}}{{% endif %}}",
        "<assistant> </assistant> <user> </user> <system> </system>",
        "<think> </think>",
        keeps=True,
    ),
    Past(
        "a sentence each",  # as Spark 2.5
        "{% for m in messages %}{{ '<｜start▁of▁sentence｜>' }}{% if m.role == 'assistant' %}{{ '<|Bot|>' }}"
        "{% if m.reasoning_content is string and m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}"
        "{% else %}{{ '</think>' }}{% endif %}{% else %}{{ '<|' + m.role | capitalize + '|>' }}{% endif %}"
        "{{ m.content + '<｜end▁of▁sentence｜>' }}{% endfor %}"
        f"{_ASK}{{{{ '<｜start▁of▁sentence｜><|Bot|>' }}}}{{% if enable_thinking is defined %}}"
        "{{ '<think>' if enable_thinking else '</think>' }}{% endif %}{% endif %}",
        "<|Bot|> <|User|> <|System|> <｜start▁of▁sentence｜> <｜end▁of▁sentence｜>",
        "<think> </think>",
        keeps=True,
    ),
    Past(
        "a line for the role",  # as Ling 3.0
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<role>ASSISTANT</role>\n<think>' }}"
        "{{ m.reasoning_content if m.reasoning_content is string else '' }}{{ '</think>' + m.content + '<|role_end|>' }}"
        "{% else %}{{ '<role>' + ('HUMAN' if m.role == 'user' else 'SYSTEM') + '</role>' + m.content + '<|role_end|>' }}"
        "{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<role>ASSISTANT</role>\n<think>' }}}}{{% endif %}}",
        "<role> </role> <|role_end|>",
        "<think> </think>",
        keeps=True,
    ),
    Past(
        "an empty thought in the past",  # as GLM-4.6
        f"[gMASK]<sop>{_LAST_USER}{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ '<|user|>\n' + m.content }}}}"
        "{{ '/nothink' if enable_thinking is defined and not enable_thinking and not m.content.endswith('/nothink') else '' }}"
        f"{{% elif m.role == 'assistant' %}}{{{{ '<|assistant|>' }}}}{_SPLIT}"
        "{% if loop.index0 > ns.last and thought %}{{ '\n<think>' + thought.strip() + '</think>' }}"
        "{% else %}{{ '\n<think></think>' }}{% endif %}{{ '\n' + said.strip() }}"
        "{% else %}{{ '<|system|>\n' + m.content }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<|assistant|>' }}}}{{{{ '\n<think></think>\n' if enable_thinking is defined and not enable_thinking }}}}"
        "{% endif %}",
        "[gMASK] <sop> <|user|> <|assistant|> <|system|>",
        "<think> </think>",
    ),
    Past(
        "square roles",  # as MiniMax M2
        f"{_LAST_USER}{{% for m in messages %}}{{% if m.role == 'assistant' %}}{{{{ ']~b]ai\n' }}}}{_SPLIT}"
        "{% if thought and loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said + '[e~[\n' }}"
        "{% else %}{{ ']~b]' + m.role + '\n' + m.content + '[e~[\n' }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ ']~b]ai\n<think>\n' }}}}{{% endif %}}",
        "]~b] [e~[",
        "<think> </think>",
    ),
    Past(
        "every turn is seen to think",  # as MiniMax M3
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ ']~b]ai\n' }}"
        "{% if m.reasoning_content is string and m.reasoning_content %}{{ '<mm:think>' ~ m.reasoning_content ~ '</mm:think>' }}"
        "{% else %}{{ '</mm:think>' }}{% endif %}{{ m.content ~ '[e~[\n' }}"
        "{% else %}{{ ']~b]' ~ m.role ~ '\n' ~ m.content ~ '[e~[\n' }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ ']~b]ai\n' }}}}{{% endif %}}",
        "]~b] [e~[ <mm:think> </mm:think>",
        keeps=True,
        marks=("<mm:think>", "</mm:think>"),
    ),
    Past(
        "a channel in the content",  # as Gemma 4
        "{% macro stripped(text) %}{% set ns = namespace(out='') %}{% for part in text.split('<channel|>') %}"
        "{% set ns.out = ns.out + part.split('<|channel>')[0] %}{% endfor %}{{ ns.out | trim }}{% endmacro %}"
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ '<|turn>system\n' + messages[0].content | trim + '<turn|>\n' }}"
        "{% endif %}{% for m in messages if m.role != 'system' %}"
        "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ stripped(m.content) if m.role == 'assistant' else m.content | trim }}{{ '<turn|>\n' }}{% endfor %}"
        f"{_ASK}{{{{ '<|turn>model\n' }}}}{{% if enable_thinking is defined and not enable_thinking %}}"
        "{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
        "<|turn> <turn|> <|channel> <channel|>",
        marks=("<|channel>thought\n", "<channel|>"),
    ),
    Past(
        "thinking tokens",  # as Command A reasoning
        "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}{% if m.role == 'assistant' %}{{ '<|CHATBOT_TOKEN|>' }}"
        "{% if m.reasoning_content %}{{ '<|START_THINKING|>' + m.reasoning_content + '<|END_THINKING|>' }}{% endif %}"
        "{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}"
        "{% else %}{{ '<|' + m.role | upper + '_TOKEN|>' + m.content }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        f"{_ASK}{{{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>' }}}}{{% endif %}}",
        "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> "
        "<|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|> <|END_RESPONSE|>",
        keeps=True,
        marks=("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ),
    Past(
        "always asking",  # as Command R7B: whether or not a generation prompt is wanted
        "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}{% if m.role == 'assistant' %}"
        "{{ '<|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}"
        "{% else %}{{ '<|' + m.role | upper + '_TOKEN|>' + m.content }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% if not enable_thinking %}"
        "{{ '<|START_THINKING|><|END_THINKING|>' }}{% endif %}",
        "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> "
        "<|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|> <|END_RESPONSE|>",
        marks=("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    Past(
        "in words",  # as Apriel
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '\n<|begin_assistant|>\n' }}"
        "{% if m.get('reasoning_content') and loop.last %}{{ m['reasoning_content'] + '\n[BEGIN FINAL RESPONSE]\n' }}{% endif %}"
        "{% if not loop.last and '[BEGIN FINAL RESPONSE]' in m.content %}"
        "{{ m.content.split('[BEGIN FINAL RESPONSE]')[-1] | trim }}{% else %}{{ m.content }}{% endif %}{{ '\n<|end|>' }}"
        "{% else %}{{ '<|begin_' + m.role + '|>\n' + m.content }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '\n<|begin_assistant|>\nHere are my reasoning steps:\n' }}}}{{% endif %}}",
        "<|begin_system|> <|begin_user|> <|begin_assistant|> <|end|>",
        marks=("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ),
    Past(
        "open and close",  # as Kimi K3
        "{% macro open(tag) %}{{ '<|open|>' + tag + '<|sep|>' }}{% endmacro %}"
        "{% macro close(tag) %}{{ '<|close|>' + tag + '<|sep|>' }}{% endmacro %}{% for m in messages %}"
        "{{ open('message role=' + m.role) }}{% if m.role == 'assistant' %}{{ open('think') }}"
        "{% if m.get('reasoning_content') %}{{ m.reasoning_content }}{% endif %}{{ close('think') + open('response') }}"
        "{{ m.content }}{{ close('response') }}{% else %}{{ m.content }}{% endif %}{{ close('message') + '<|end_of_msg|>' }}"
        f"{{% endfor %}}{_ASK}{{{{ open('message role=assistant') + open('think') }}}}{{% endif %}}",
        "<|open|> <|close|> <|sep|> <|end_of_msg|>",
        keeps=True,
        marks=("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    ),
    Past(
        "marks put together in the template",  # as Hunyuan 3
        "{% set kind = ':open' %}{% set begin = '<think{}>'.format(kind) %}{% set end = '</think{}>'.format(kind) %}"
        f"{_LAST_USER}{{% for m in messages %}}{{% if m.role == 'assistant' %}}{{{{ '<|bot|>' + begin }}}}"
        "{% if m['reasoning_content'] is string and loop.index0 > ns.last %}{{ m['reasoning_content'] }}{% endif %}"
        "{{ end + m.content + '<|eos|>' }}{% else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<|bot|>' + begin }}}}{{% endif %}}",
        "<|bot|> <|user|> <|system|> <|eos|>",
        "<think:open> </think:open>",
        marks=("<think:open>", "</think:open>"),
    ),
    Past(
        "an answer in tags",  # as Hunyuan A13B
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set said = m.content %}"
        "{% if '<answer>' in said and not loop.last %}{% set said = said.split('<answer>')[-1].replace('</answer>', '') %}"
        "{% elif '</think>' in said and not loop.last %}{% set said = said.split('</think>')[-1] %}{% endif %}"
        "{{ said + '<|eos|>' }}{% elif m.role == 'user' %}{{ m.content + '<|extra_0|>' }}"
        "{% else %}{{ '<|startoftext|>' + m.content + '<|extra_4|>' }}{% endif %}{% endfor %}",
        "<|startoftext|> <|extra_4|> <|extra_0|> <|eos|>",
        "<think> </think> <answer> </answer>",
    ),
    Past(
        "numbered tokens",  # as Nemotron Nano
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set said = m.content %}{% if '</think>' in said %}"
        "{% set said = '<think></think>' + said.split('</think>')[-1].lstrip() %}{% endif %}"
        "{{ '<SPECIAL_11>Assistant\n' + said.strip() + '\n<SPECIAL_12>\n' }}"
        "{% else %}{{ '<SPECIAL_1' + ('0' if m.role == 'system' else '1') + '>' + m.role | capitalize + '\n' + m.content + '\n' }}"
        f"{{% endif %}}{{% endfor %}}{_ASK}{{{{ '<SPECIAL_11>Assistant\n<think>\n' }}}}{{% endif %}}",
        "<SPECIAL_10> <SPECIAL_11> <SPECIAL_12>",
        "<think> </think>",
    ),
    Past(
        "an assistant of many channels",  # as Solar Open
        f"{_LAST_USER}{{% for m in messages %}}{{% if m.role == 'assistant' %}}"
        "{% if m.reasoning and loop.index0 > ns.last %}{{ '<|begin|>assistant<|ponder|>' + m.reasoning + '<|end|>' }}{% endif %}"
        "{{ '<|begin|>assistant<|content|>' + m.content + '<|end|>' }}"
        "{% else %}{{ '<|begin|>' + m.role + '<|content|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<|begin|>assistant' }}}}{{% endif %}}",
        "<|begin|> <|ponder|> <|content|> <|end|>",
        marks=("<|ponder|>", "<|end|><|begin|>assistant<|content|>"),
    ),
    Past(
        "parts alone",  # as SmolVLM
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' }}{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        f"{{{{ '<|im_end|>\n' }}}}{{% endfor %}}{_ASK}{{{{ '<|im_start|>assistant:' }}}}{{% endif %}}",
        f"{_IM} <image>",
        marks=None,
    ),
    Past(
        "inside one another",  # as Apertus
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '_start|>' + m.content + '<|' + m.role + '_end|>' }}{% endfor %}"
        f"{{# <|inner_prefix|> thoughts <|inner_suffix|> #}}{_ASK}{{{{ '<|assistant_start|>' }}}}{{% endif %}}",
        "<|system_start|> <|system_end|> <|user_start|> <|user_end|> <|assistant_start|> <|assistant_end|> "
        "<|inner_prefix|> <|inner_suffix|>",
        keeps=True,
        marks=("<|inner_prefix|>", "<|inner_suffix|>"),
    ),
    Past(
        "the system text in the first question",  # as Llama 2
        "{% if messages[0].role == 'system' %}{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (head if loop.first else '') + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "[INST] [/INST]",
        marks=None,
    ),
    Past(
        "thoughts in a tag",  # as EXAONE Deep
        "{% for m in messages %}{% set said = m.content %}{% if '</thought>' in said %}"
        "{% set said = said.split('</thought>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '[|' + m.role + '|]' + said + ('' if m.role == 'user' else '[|endofturn|]') + '\n' }}{% endfor %}"
        f"{_ASK}{{{{ '[|assistant|]<thought>\n' }}}}{{% endif %}}",
        "[|system|] [|user|] [|assistant|] [|endofturn|]",
        "<thought> </thought>",
        marks=("<thought>", "</thought>"),
    ),
    Past(
        "plain names",  # as RWKV's
        "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content | trim + '\n\n' }}{% endfor %}"
        f"{_ASK}{{{{ 'Assistant:' }}}}{{% endif %}}",
        "",
        marks=None,
    ),
    Past(
        "kept whatever is asked",  # as Bielik
        f"{{% for m in messages %}}{{% if m.role == 'assistant' %}}{_SPLIT}{{{{ '<|im_start|>assistant\n' }}}}"
        "{% if thought %}{{ '<think>\n' + thought.strip() + '\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        f"{_ASK}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}",
        _IM,
        "<think> </think>",
        keeps=True,
    ),
)
"""All of them; the names say what is particular."""

EVERY = {past.name: past.template() for past in PAST} | {sample.name: sample.template() for sample in SAMPLES}
"""Those of `chat_templates` too."""
