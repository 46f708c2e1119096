# Debian as a source of packages. Sourced by bin/setup and bin/lane, whose `say` it uses.
# shellcheck shell=bash

debian_codename() {
  # shellcheck disable=SC1091
  (. /etc/os-release && echo "${VERSION_CODENAME:-}")
}

apt_list() { echo "/etc/apt/sources.list.d/$1.sources"; } # NAME
apt_pin() { echo "/etc/apt/preferences.d/$1"; }           # NAME

# Whether the machine's own sources have a suite.
serves() { # SUITE
  local files=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources)
  { cat "${files[@]}" 2>/dev/null || true; } | grep -Eq "^(Suites:|deb )(.* )?$1( |\$)"
}

# Makes SUITE a further package source, in files called NAME. It is the machine's own Debian source with the suite's name changed,
# so that its mirror and its key are kept. PRIORITY is lower than that of everything the machine has, so that nothing moves to the
# suite by itself.
add_suite() { # SUITE PRIORITY NAME
  local added=$1 priority=$2 list pin own source
  list=$(apt_list "$3") pin=$(apt_pin "$3") own=$(debian_codename)
  if [ "$own" = "$added" ] && [ ! -e "$list" ]; then return; fi
  # Whoever has the suite already keeps it as it is: a pin would move packages.
  if [ ! -e "$list" ] && serves "$added"; then return; fi
  if [ -s "$list" ] && [ -s "$pin" ]; then return; fi
  source=$(
    # An empty line after each file, so that its last entry ends there.
    awk 'FNR == 1 { print "" } { print }' /etc/apt/sources.list.d/*.sources 2>/dev/null |
      awk -v own="$own" 'BEGIN { RS = ""; FS = "\n" }
        function field(name,    i) { for (i = 1; i <= NF; i++) if (index($i, name ":") == 1) return $i " "; return "" }
        field("Types") ~ /[: ]deb / && field("Components") ~ /[: ]main / && index(field("Suites"), " " own " ") &&
          field("Enabled") !~ /no/ { print; exit }' |
      sed -E -e '/^(#|Components:)/d' -e 's/^Types:.*/Types: deb/' -e "s/^Suites:.*/Suites: $added/" || true
  )
  if [ -z "$source" ]; then
    source=$(
      { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
        awk -v own="$own" -v added="$added" '$1 == "deb" {
          options = ""; i = 2
          if ($2 ~ /^\[/) { while ($i !~ /\]$/) i++; i++; for (j = 2; j < i; j++) options = options " " $j }
          main = 0; for (j = i + 2; j <= NF; j++) if ($j == "main") main = 1
          if ($(i + 1) == own && main) {
            if (match(options, /signed-by=[^] ]+/)) signed = "\nSigned-By: " substr(options, RSTART + 10, RLENGTH - 10)
            printf "Types: deb\nURIs: %s\nSuites: %s%s\n", $i, added, signed; exit
          }
        }' || true
    )
  fi
  if [ -z "$source" ]; then
    say "no APT source of this machine serves $own, so there is none to copy for $added" >&2
    exit 1
  fi
  say "adding the suite $added as a further package source ($list), pinned low: nothing else moves to it by itself"
  # The experimental suite has a name of its own.
  printf 'Package: *\nPin: release n=%s\nPin-Priority: %s\n' "${added/#experimental/rc-buggy}" "$priority" >"$pin"
  printf '%s\nComponents: main\n' "$source" >"$list"
}
