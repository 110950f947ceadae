"""Chat templates in the styles of published models, with the form of each role's content that their users give.

``list``: parts; ``text``: text with a placeholder and a newline for each image before it; ``own``: text alone, the
template writes the placeholder.  None: the template refuses the role.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A template and how it is used. ``second``: whether it serves a second question of a conversation."""

    source: str
    user: str
    assistant: str | None = None
    system: str | None = None
    second: bool = True


LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] "
    "+ '\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '<\\s> '}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_MIXED = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant') }}{%- endif %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}{{- '[INST]' + system_message + '\n\n' }}{%- else %}"
    "{{- '[INST]' }}{%- endif %}{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for chunk in message['content'] %}{%- if chunk['type'] == 'text' %}{{- chunk['text'] }}"
    "{%- elif chunk['type'] == 'image' %}{{- '<image>' }}{%- else %}{{- raise_exception('unknown') }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '[/INST]' }}{%- elif message['role'] == 'assistant' %}"
    "{{- message['content'] + eos_token }}{%- else %}{{- raise_exception('Only user and assistant') }}{%- endif %}"
    "{%- endfor %}"
)
JOY = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = 'You are a captioner.' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}{%- set first = true %}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if message['role'] == 'user' and loop.first %}{{- '<image>' }}{%- endif %}"
    "{{- message['content'].replace('<image>', '').lstrip() + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
OWN = (
    "{% for m in messages %}{{ m['role'] }}: {% if loop.first or (loop.previtem and loop.previtem.role == 'system') %}"
    "<image> {% endif %}{{ m['content'] }} {% endfor %}assistant: "
)
OWN_EACH = (
    "{% for m in messages %}{% if m.role == 'user' %}<image>\n{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
QWEN = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != "
    "'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>"
    "{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: "
    "{% endif %}<image>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = 'A chat between a "
    "curious user and an assistant.' %}{% endif %}{{ system_message }}{% for message in loop_messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'].strip() }}{% else %}"
    "{{ ' ASSISTANT: ' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_VISION = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- if messages[0]['content'] is string %}"
    "{%- set system_message = messages[0]['content']|trim %}{%- else %}"
    "{%- set system_message = messages[0]['content'][0]['text']|trim %}{%- endif %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Today Date: ' + date_string|default('26 Jul 2024') + '\n\n' + system_message + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}{%- for content in message['content'] %}"
    "{%- if content['type'] == 'image' %}{{- '<image>' }}{%- elif content['type'] == 'text' %}{{- content['text'] }}"
    "{%- endif %}{%- endfor %}{%- endif %}{{- '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ONE_QUESTION = (
    "{% if messages|length != 1 %}{{ raise_exception('one question only') }}{% endif %}"
    "Question: {{ messages[0]['content'] }} Answer:"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + "
    "'\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FOLDED = (
    "{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'user' %}<user>"
    "{{ ((messages[0].content + '\n\n' if loop.index0 == 1 and messages[0].role == 'system' else '')"
    " + m.content)|trim }}"
    "{% else %}<model>{{ m.content.rstrip() }}{% endif %}{% endfor %}<model>"
)
PHI = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ '<|system|>\n' + message.content + '<|end|>\n' }}"
    "{% elif message.role == 'user' %}{{ '<|user|>\n' + message.content.strip('\n#') + '<|end|>\n' }}"
    "{% else %}{{ '<|assistant|>\n' + message.content.lstrip('\n') + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

STYLES = {
    "llava": Style(LLAVA, "list", "list", "list"),
    "llava-mistral": Style(LLAVA_MISTRAL, "list", "list", "list"),
    "mistral-mixed": Style(MISTRAL_MIXED, "list", "text", "text"),
    "joy": Style(JOY, "own", "text", "text"),
    "own": Style(OWN, "own", "text", "text"),
    "own-each": Style(OWN_EACH, "own", "text", "text", second=False),
    "qwen": Style(QWEN, "list", "list", "list"),
    "chatml": Style(CHATML, "text", "text", "text"),
    "vicuna": Style(VICUNA, "text", "text", "text"),
    "llama-3": Style(LLAMA3, "text", "text", "text"),
    "llama-3-vision": Style(LLAMA3_VISION, "list", "list", "list"),
    "gemma": Style(GEMMA, "text", "text", None),
    "smolvlm": Style(SMOLVLM, "list", "list", "list"),
    "llama-2": Style(LLAMA2, "text", "text", "text"),
    "folded": Style(FOLDED, "text", "text", "text"),
    "phi": Style(PHI, "text", "text", "text"),
    "one-question": Style(ONE_QUESTION, "text", None, None, second=False),
}

_EACH = "{%% for m in messages %%}{{ m.role }}: {{ %s }}\n{%% endfor %%}assistant:"
# Templates that pieces cannot express, and what is said of them.
NOT_COMPILED = {
    "date": ("Today is {{ strftime_now('%d %b %Y') }}. " + _EACH % "m.content", "prints the date"),
    "think": (
        _EACH % "m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content",
        "depends on the words",
    ),
    "numbered": (
        "{% set n = namespace(i=0) %}{% for m in messages %}{{ m.role }}: "
        "{% for c in m.content %}{% if c.type == 'image' %}{% set n.i = n.i + 1 %}Image {{ n.i }}: <image>\n"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}",
        "writes several images in a form of its own",
    ),
    "joined": (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>"
        "{% if not loop.last and loop.nextitem.type == 'image' %}, {% endif %}{% else %} {{ c.text }}{% endif %}"
        "{% endfor %}\n{% endfor %}",
        "writes several images in a form of its own",
    ),
    "words": (_EACH % "'CODE: ' + m.content if 'code' in m.content else m.content", "depends on the words"),
    "case": (_EACH % "m.content|lower", "depends on the words"),
    "escaped": (_EACH % "m.content|tojson", "changes the texts"),
    "collapsed": (_EACH % "m.content.split()|join(' ')", "own"),
    "empty": (_EACH % "m.content or 'nothing'", "own"),
    "long": (_EACH % "m.content[:100]", "words"),
    "many": ("{% if messages|length > 20 %}...{% endif %}" + _EACH % "m.content", "number of turns"),
    "few": ("{% if messages|length == 3 %}second {% endif %}" + _EACH % "m.content", "number of turns"),
    "refuses-many": (
        "{% if messages|length > 3 %}{{ raise_exception('too many') }}{% endif %}" + _EACH % "m.content",
        "conversations of some lengths",
    ),
    "twice": ("{{ messages[0].content }}" + _EACH % "m.content", "writes a text twice"),
    "random": ("{{ range(1000)|random }}" + _EACH % "m.content", "same way every time"),
    "images-behind": (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}"
        "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}\n{% endfor %}assistant:",
        "elsewhere than before",
    ),
    "backwards": ("{% for m in messages|reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "order"),
    "words-refused": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception(m.content) }}{% endif %}"
        "{{ m.content }}{% endfor %}",
        "with words of theirs",
    ),
}
