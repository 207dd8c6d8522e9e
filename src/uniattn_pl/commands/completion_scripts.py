"""The scripts that shells read, with the places where `completion` puts the program's words."""

from __future__ import annotations

from string import Template

# `@` marks what is filled in, since shells use `$`.


class ShellTemplate(Template):
    """Text of a shell in which `@{name}` is filled in."""

    delimiter = "@"


BASH = ShellTemplate("""\
# bash completion of uniattn-pl, printed by `uniattn-pl completion bash`
_uniattn_pl() {
    local line=${COMP_LINE:0:COMP_POINT} words='' config=0 values='' token key
    token=${line##*[[:space:]]}
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W @{commands} -- "$token"))
        return
    fi
    case ${COMP_WORDS[1]} in
@{cases}
    esac
    if ((config)) && [[ $token == *=* ]]; then
        key=${token%%=*}
        case ${key#--} in
@{values}
        esac
        # bash takes `=` for the end of a word: only what is behind it is replaced
        COMPREPLY=($(compgen -W "$values" -- "${token#*=}"))
        return
    fi
    COMPREPLY=($(compgen -W "$words" -- "$token"))
    if ((config)) && [[ -n $token && $token != -* ]]; then
        COMPREPLY+=($(compgen -W @{keys} -- "$token"))
    fi
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _uniattn_pl uniattn-pl
""")

ZSH = ShellTemplate("""\
#compdef uniattn-pl
# zsh completion of uniattn-pl, printed by `uniattn-pl completion zsh`
_uniattn_pl() {
    local all=@{commands} keys=@{keys} command=${words[2]} config=0 values='' key
    if ((CURRENT == 2)); then
        compadd -- ${=all}
        return
    fi
    local words=''
    case $command in
@{cases}
    esac
    if ((config)) && [[ $PREFIX == *=* ]]; then
        key=${PREFIX%%=*}
        case ${key#--} in
@{values}
        esac
        compset -P '*='
        if [[ -n $values ]]; then compadd -- ${=values}; else _files; fi
        return
    fi
    compadd -- ${=words}
    ((config)) || return 0
    [[ -n $PREFIX && $PREFIX != -* ]] && compadd -S '' -- ${=keys}
    _files
}
compdef _uniattn_pl uniattn-pl
""")

SCRIPTS: dict[str, ShellTemplate] = {"bash": BASH, "zsh": ZSH}
