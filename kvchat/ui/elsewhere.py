"""What people who come from ollama, aichat, llm, aider and Claude Code type in the chat, and how that is said here."""

from __future__ import annotations

ALIASES = {
    "/?": "/help",
    "/h": "/help",
    "/commands": "/help",
    "/bye": "/exit",
    "/quit": "/exit",
    "/q": "/exit",
    "/regenerate": "/retry",
    "/regen": "/retry",
    "/load": "/resume",
    "/save": "/rename",
    "/name": "/rename",
    "/title": "/rename",
    "/history": "/sessions",
    "/session": "/sessions",
    "/chats": "/sessions",
    "/models": "/model",
    "/list": "/model",
    "/prompts": "/prompt",
    "/role": "/prompt",
    "/config": "/set",
    "/settings": "/set",
    "/cost": "/stats",
    "/status": "/stats",
    "/usage": "/stats",
    "/reset": "/clear",
    "/file": "/read",
    "/add": "/read",
    "/read-only": "/read",
}
"""Words for a command that is called otherwise here."""
PHRASES = {
    "/set system": "/system",
    "/set parameter": "/set",
    "/show system": "/system",
    "/show parameters": "/set",
    "/show info": "/model",
    "/show": "/model",
}
"""Beginnings of lines that are another command here; the longest counts."""
FAREWELLS = ("exit", "quit", ":q", "bye")
"""Whole lines that leave, though they are no commands."""
ADVICE = {
    "/run": "!COMMAND runs a shell command",
    "/diff": "!git diff shows it, and its output can go along",
    "/commit": "!git commit does that",
    "/git": "!git does that",
    "/test": "!COMMAND runs a shell command",
    "/editor": "Ctrl-G opens the message in your editor",
    "/edit-message": "Ctrl-G opens the message in your editor",
    "/rewind": "Esc Esc goes back to an earlier message",
    "/paste": "paste into the input; a long paste is folded",
    "/multi": "Alt-Enter or Ctrl-J begins a new line",
    "/vim": "vi = true under [ui] in config.toml gives the input vi's keys",
    "/theme": "the terminal's own colours are used",
    "/doctor": "kvchat doctor does that, outside of the chat",
    "/login": "there is nothing to log in to: the model is on this machine",
    "/image": "only text can be sent",
    "/web": "nothing is fetched: !curl URL can, and its output can go along",
    "/voice": "only text can be sent",
}
"""What to do instead of commands that are none here."""


def said_here(line: str) -> str:
    """A line as this program says it; the same where there is nothing to change."""
    if line.strip().lower() in FAREWELLS:
        return "/exit"
    for phrase in sorted(PHRASES, key=len, reverse=True):
        if line == phrase or line.startswith((f"{phrase} ", f"{phrase}\n")):
            return PHRASES[phrase] + line.removeprefix(phrase)
    return line
