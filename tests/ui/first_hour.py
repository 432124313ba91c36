"""What people do in their first hour, by the words and keys that they know from elsewhere: in the chat, and in the shell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """What is done and where one knows it from; the keys or lines that do it in the chat, or the words of a command line;
    and what is then to be seen. `\\r` is Enter, and `wait for` no key."""

    what: str
    known_from: str
    said: tuple[str, ...]
    seen: str


CHAT = (
    Task("ask", "all", ("hello there\r",), r"you said: hello there"),
    Task("ask about what was said", "all", ("and you?\r",), r"\[3\] you said: and you\?"),
    Task("see the commands", "ollama", ("/?\r",), r"/retry .*another answer"),
    Task("see the commands", "claude", ("/help\r",), r"Ctrl-D +leave"),
    Task("write two lines", "claude", ("one\\\r", "two\r"), r"you said: one"),
    Task("write two lines", "claude", ("three\n", "four\r"), r"you said: three"),
    Task("stop an answer", "claude", ("slow 60\r", "wait for word5", "\x1b"), r"stopped by you"),
    Task("stop an answer", "ollama", ("slow 60\r", "wait for word5", "\x03"), r"stopped by you"),
    Task("go on with it", "aichat", ("/continue\r",), r"word59"),
    Task("get another answer", "aichat", ("/regenerate\r",), r"word59"),
    Task("get another answer", "llm", ("/retry\r",), r"word59"),
    Task("take the last message back", "aider", ("/undo\r", "wait for taken back", "\x03"), r"taken back"),
    Task(
        "go back to an earlier message",
        "claude",
        ("\x1b\x1b", "wait for go back", "\x1b"),
        r"go back to before",
    ),
    Task(
        "find an earlier message",
        "shell",
        ("\x12there", "\r", "wait for hello there", "\x03"),
        r"hello there",
    ),
    Task("see the system prompt", "ollama", ("/show system\r",), r"no system prompt"),
    Task("set the system prompt", "ollama", ("/set system Be brief.\r",), r"replaced"),
    Task("set the system prompt", "aichat", ("/system Be kind.\r",), r"replaced"),
    Task("set the temperature", "ollama", ("/set parameter temperature 0.5\r",), r"temperature = 0.5"),
    Task("set the temperature", "aichat", ("/set temperature 0.7\r",), r"temperature = 0.7"),
    Task("see the settings", "claude", ("/config\r",), r"max_tokens = 4096"),
    Task("see the settings", "aider", ("/settings\r",), r"max_tokens = 4096"),
    Task("see which model answers", "ollama", ("/show info\r",), r"scripted"),
    Task("see which model answers", "claude", ("/model\r",), r"scripted"),
    Task("see how long it is", "aider", ("/tokens\r",), r"the conversation has \d+ tokens of 8192"),
    Task("see what takes room", "claude", ("/context\r",), r"free"),
    Task("see what it cost", "claude", ("/cost\r",), r"answers \d+"),
    Task("send a file", "claude", ("read @notes.md\r",), r"milk and honey"),
    Task(
        "send a file", "aider", ("/add notes.md\r", "wait for will be sent", "and this\r"), r"milk and honey"
    ),
    Task(
        "run a command",
        "claude",
        ("!echo from-the-shell\r", "wait for y/n|\\[y|along", "n"),
        r"(?s)from-the-shell.*from-the-shell",
    ),
    Task("run a command", "aider", ("/run ls\r",), r"!COMMAND runs a shell command"),
    Task("copy the answer", "aider", ("/copy\r",), r"clipboard"),
    Task("write it to a file", "claude", ("/export md out.md\r",), r"written to"),
    Task("make room", "claude", ("/compact\r",), r"Summarise"),
    Task("name the conversation", "ollama", ("/save first\r",), r"is now called first"),
    Task("begin a new one", "claude", ("/clear\r",), r"a new conversation begins"),
    Task("begin a new one", "aichat", ("/new\r",), r"a new conversation begins"),
    Task("see the saved ones", "llm", ("/history\r", "wait for → 1", "\x1b"), r"sessions: .*\n.* first"),
    Task("go on with a saved one", "ollama", ("/load first\r",), r"session|said"),
    Task("go on with a saved one", "claude", ("/resume first\r",), r"session|said"),
    Task("branch off", "claude", ("/fork beside\r",), r"now in session beside"),
    Task("delete it", "aichat", ("/delete beside --yes\r",), r"is deleted"),
    Task("mistype a command", "all", ("/hlep\r",), r"did you mean /help"),
    Task("complete a command", "all", ("/conte\t\r",), r"> /context"),
    Task("redraw the screen", "shell", ("\x0c", "still here\r"), r"you said: still here"),
    Task("leave", "llm", ("exit\r",), r"kvchat -c"),
)
SHELL = (
    Task(
        "run a model",
        "ollama",
        ("run", "smollm2-135m", "why is the sky blue?"),
        r"you said: why is the sky blue\?",
    ),
    Task("ask", "claude", ("-p", "why is the sky blue?"), r"you said: why"),
    Task("ask", "llm", ("why is the sky blue?",), r"you said: why"),
    Task(
        "ask without quotes", "aichat", ("why", "is", "the", "sky", "blue"), r"you said: why is the sky blue"
    ),
    Task("ask another model", "llm", ("-m", "smollm2-135m", "why is it?"), r"you said: why"),
    Task("ask with a system prompt", "llm", ("-s", "be brief", "why is it?"), r"\[2\] you said: why"),
    Task("ask further", "claude", ("-c", "-p", "and then?"), r"and then\?"),
    Task("ask for JSON", "claude", ("--json", "-p", "why?"), r'"response": '),
    Task("see the models", "ollama", ("list",), r"smollm2-135m"),
    Task("see the models", "llm", ("models",), r"smollm2-135m"),
    Task("see what runs", "ollama", ("ps",), r""),
    Task("stop what runs", "ollama", ("stop",), r""),
    Task("see what was asked", "llm", ("logs",), r"why is the sky blue"),
    Task("search what was asked", "llm", ("search", "sky"), r"why is the sky blue"),
    Task("see the saved prompts", "llm", ("templates",), r"translate"),
    Task("use one", "llm", ("-t", "explain", "-p", "why?"), r"you said: why"),
    Task("see the version", "all", ("--version",), r"kvchat \d"),
    Task("see how it is used", "all", ("--help",), r"opens a chat"),
    Task("see where settings are", "aichat", ("config", "path"), r"config|CONFIG"),
    Task("check the machine", "claude", ("help",), r"terminal"),
)
