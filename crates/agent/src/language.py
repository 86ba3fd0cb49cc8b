"""The language of a text, and compiling it: Python with IPython's `!command` and its like, or the shell's.

It is a module of the session's interpreter, and a program of its own that looks at a text while the interpreter is busy:
then the text comes as standard input, and the exit status tells.
"""

import os

ONLY_AST = 0x400
TOP_LEVEL_AWAIT = 0x2000
# The exit status of `check` when the text is for a shell. Whatever else goes wrong leaves it to the interpreter.
FOR_A_SHELL = 3

# Words that start no shell command unless the text has the rest of the shell's compound command.
COMPOUND = {
    "for": ("do", "done"),
    "while": ("do", "done"),
    "until": ("do", "done"),
    "select": ("do", "done"),
    "if": ("then", "fi"),
    "case": ("esac",),
}
PYTHON_WORDS = frozenset(
    "False None True and as assert async await break class continue def del elif else except finally for from global"
    " if import in is lambda nonlocal not or pass raise return try while with yield print match".split()
)
SHELL_BUILTINS = frozenset(
    ". : alias bg builtin cd command declare disown echo eval exec exit export false fg getopts hash"
    " jobs let local popd printf pushd pwd read readonly return set shift shopt source test times trap true type"
    " typeset ulimit umask unalias unset wait".split()
)
# After a first word these are Python's, not a command's arguments.
OPERATORS = frozenset("= += -= *= /= |= := == != %= @= &= ^= >>= <<= //= **=".split())
OPERATOR_WORDS = frozenset("and if in is not or".split())
# Where the name is that Python looks up first.
LEADING = {"Expr": "value", "BinOp": "left", "BoolOp": "values", "Compare": "left", "Attribute": "value"}


def is_program(word):
    if "/" in word:
        path = os.path.expanduser(word)
        return os.path.isfile(path) and os.access(path, os.X_OK)
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, word)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return True
    return False


def is_command(word):
    return word[:1] != "[" and word not in PYTHON_WORDS and (word in SHELL_BUILTINS or is_program(word))


def significant_lines(source):
    lines = (line.strip() for line in source.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def end_of_value(text):
    """Where the value of a shell's assignment ends: at a space outside of quotes and parentheses."""
    quote, depth = None, 0
    for index, character in enumerate(text):
        if quote:
            quote = None if character == quote else quote
        elif character in "'\"`":
            quote = character
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif depth == 0 and (character.isspace() or character in ";&|"):
            return index
    return len(text)


def without_assignments(line):
    """The line after its `NAME=value` prefixes."""
    while True:
        name, equals, rest = line.partition("=")
        if not equals or not name.isidentifier() or rest[:1].isspace() or rest[:1] == "=":
            return line
        line = rest[end_of_value(rest) :].lstrip(" \t;&|")


def first_command(lines):
    """The first line that does more than assign, from its command on."""
    for line in lines:
        command = without_assignments(line)
        if command:
            return command
    return ""


def first_word(line):
    end = 0
    while end < len(line) and not line[end].isspace() and line[end] not in ";|&<>()`\"'":
        end += 1
    return line[:end] or line[:1], line[end:].lstrip()


def is_python_operator(rest):
    return rest[:1] == "(" or bool(rest) and rest.split(None, 1)[0] in OPERATORS


def command_words(lines):
    """The words at the places where a shell looks for its reserved words."""
    parts = (part.split(None, 1) for line in lines for part in line.split(";"))
    return {part[0] for part in parts if part}


def defines_function(word, rest):
    """`name() {` or `function name {`"""
    if word == "function":
        return "{" in rest
    return rest.startswith("()") and rest[2:].lstrip().startswith("{")


def is_test(word, line):
    """`[ -f x ]`, which begins as a list does."""
    closing = {"[": " ]", "[[": " ]]"}.get(word)
    return closing is not None and closing in line and "," not in line


def is_shell(source):
    """Is a text that is no Python one for the shell?"""
    lines = significant_lines(source)
    if not lines:
        return False
    if source.startswith("#!") and "python" not in source.split("\n", 1)[0]:
        return True
    line = first_command(lines)
    if not line:
        return "$" in source or "`" in source
    if line[0] in "({":
        # A subshell or a group; the same marks begin a tuple or a set, so what is inside decides.
        word, _ = first_word(line[1:].lstrip())
        return is_command(word)
    word, rest = first_word(line)
    if word == "time":
        word, rest = first_word(rest.removeprefix("-p ").lstrip())
    if word in COMPOUND:
        return command_words(lines).issuperset(COMPOUND[word])
    if defines_function(word, rest) or is_test(word, line):
        return True
    return is_command(word) and not is_python_operator(rest)


def leading_name(node):
    """The name that Python looks up before it does anything else, when that is also what the text begins with."""
    while node is not None:
        kind = type(node).__name__
        if kind == "Name":
            return node.id
        node = getattr(node, LEADING.get(kind, ""), None)
        if isinstance(node, list):
            node = node[0] if node else None
    return None


def has_call(tree):
    """Calls are written with parentheses, which no command's arguments have."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "Call":
            return True
        for field in node._fields:
            value = getattr(node, field, None)
            parts = value if isinstance(value, list) else [value]
            waiting += [part for part in parts if hasattr(part, "_fields")]
    return False


def may_be_command(statement):
    """Could the shell have use for what Python takes as this statement?"""
    kind = type(statement).__name__
    if kind == "Assign":
        target, value = statement.targets[0], statement.value
        return type(target).__name__ == "Name" and target.end_col_offset + 1 == value.col_offset
    return kind == "Expr"


def has_here_document(lines):
    """`<<WORD`, with the word alone on a later line"""
    _, mark, word = lines[0].rpartition("<<")
    return bool(mark) and word.strip() in lines[1:]


def is_bare_command(source, filename, flags, known):
    """Is a text that Python could compile, `ls -la` say, a command all the same? Only where Python could not but fail:
    it begins with a name that is not there."""
    lines = significant_lines(source)
    if not lines:
        return False
    word, rest = first_word(lines[0])
    if is_python_operator(rest) or rest[:1] == "[" or rest.split(" ", 1)[0] in OPERATOR_WORDS:
        return False
    if not is_command(word):
        return False
    tree = compile(source, filename, "exec", flags | ONLY_AST, True)
    name = leading_name(tree.body[0]) if tree.body else None
    if name is None or not word.startswith(name) or known(name):
        return False
    if has_here_document(lines):
        return True
    return all(may_be_command(statement) for statement in tree.body) and not has_call(tree)


def rewritten(body):
    """The Python for a line of IPython's, or None."""
    me = "__import__('_instavm')"
    if body.startswith("!"):
        return f"{me}.shell({body.lstrip('!').strip()!r})"
    if body.startswith("%"):
        name, _, arguments = body[1:].partition(" ")
        if name == "pip":
            return f"{me}.pip({arguments.strip()!r})"
        if name == "cd":
            return f"{me}.change_directory({arguments!r})"
        return None
    target, equals, command = body.partition("=")
    target, command = target.strip(), command.lstrip()
    if equals and target.isidentifier() and command.startswith("!") and command[1:2] != "=":
        return f"{target} = {me}.shell_lines({command[1:].strip()!r})"
    return None


def rewrite(lines, number):
    """Puts Python in the place of the line, if it is one of IPython's."""
    if number is None or not 0 < number <= len(lines):
        return False
    line = lines[number - 1]
    body = line.lstrip()
    indent = line[: len(line) - len(body)]
    if rewritten(body) is None:
        return False
    last = number
    while body.endswith("\\") and last < len(lines):
        body = body[:-1] + lines[last].lstrip()
        lines[last] = ""
        last += 1
    lines[number - 1] = indent + rewritten(body)
    return True


def dedented(lines):
    """The lines without the indentation that all of them share with the first, or None."""
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    if not indent or any(line.strip() and not line.startswith(indent) for line in lines):
        return None
    return [line[len(indent) :] for line in lines]


def compile_text(source, filename, flags):
    """Compiles; `!command` and its like are looked for only where Python cannot go on, so they stay in strings."""
    try:
        return compile(source, filename, "exec", flags, True)
    except SyntaxError as error:
        first, number = error, error.lineno
        lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    original = list(lines)
    while True:
        changed = rewrite(lines, number)
        if not changed and isinstance(first, IndentationError) and lines[0][:1].isspace():
            shifted = dedented(lines)
            changed = shifted is not None
            lines = shifted or lines
        if not changed:
            if number and number <= len(lines) and lines[number - 1] != original[number - 1]:
                first.text = original[number - 1]
            raise first
        try:
            return compile("\n".join(lines), filename, "exec", flags, True)
        except SyntaxError as error:
            first, number = error, error.lineno


def check():
    """Looks at the text on standard input without knowing the session's names: only what is no Python is for a shell."""
    with open(0, "rb", closefd=False) as stream:
        source = stream.read().decode("utf-8")
    try:
        compile_text(source, "<text>", TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, OverflowError, RecursionError):
        os._exit(FOR_A_SHELL if is_shell(source) else 0)
    os._exit(0)
