#!/usr/bin/env bash
# OpenSSH's own programs against an instance whose image has no SSH server: ssh, scp, sftp, rsync, forwarded ports and agents; and
# the gateway, where a key is needed. Real guests only: the fake hypervisor's have no programs.
set -euo pipefail
export SUITE_SECONDS=${SUITE_SECONDS:-300}
# shellcheck source=tests/suites/suite.bash
. "$(dirname "$0")/suite.bash"

[ -x "$WARREN" ] || { skip ssh "there is no warren at $WARREN" && exit 0; }
for tool in qemu-system-x86_64 ssh scp sftp ssh-agent; do
    have "$tool" || { skip ssh "$tool is not installed" && exit 0; }
done
cd "$WORK"
export HOME=$WORK

make_tree() {
    mkdir -p tree/deep/empty "tree/a name with 'signs'"
    seq 1 20000 >tree/deep/numbers
    head -c 20M /dev/urandom >tree/large
    printf 'one' >"tree/a name with 'signs'/one"
    printf 'bytes' >"$(printf 'tree/no\377text')"
    chmod 751 tree/deep/numbers
    touch -d '2001-02-03 04:05:06' tree/deep/numbers
}

# ssh as `warren ssh --config` has set it up, and as a program that starts `warren ssh` itself.
ssh_to() { timeout 60 ssh -F config "$@"; }

a_command_has_its_streams_and_status() {
    local status=0
    warren ssh box 'echo out; echo err >&2; cat; exit 7' <<<in >out 2>err || status=$?
    expect 7 "$status"
    expect $'out\nin' "$(cat out)"
    expect err "$(cat err)"
    # shellcheck disable=SC2016 # For the guest's shell.
    expect 'root /root /bin/sh' "$(ssh_to box.warren 'echo $USER $HOME $SHELL')"
    # Whoever has /bin/false for a shell gets that.
    status=0
    ssh_to www@box.warren true || status=$?
    expect 1 "$status"
    contains "$(refused ssh_to nobody@box.warren true)" 'no user "nobody"'
    contains "$(refused warren ssh missing true)" 'there is no instance "missing"'
}

a_terminal_is_one() {
    # shellcheck disable=SC2016 # For the guest's shell.
    contains "$(ssh_to -tt box.warren 'tty; stty size; echo $TERM' </dev/null)" /dev/pts/
}

what_does_not_read_does_not_stand_still() {
    # More than all windows and pipes on the way hold.
    expect 16777216 "$(head -c 16M /dev/zero | ssh_to box.warren cat | wc -c)"
    expect over "$(head -c 64M /dev/zero | ssh_to box.warren 'sleep 1; echo over')"
}

scp_copies_trees() {
    timeout 120 scp -q -F config -r -p tree box.warren:
    timeout 120 scp -q -F config -r -p box.warren:tree back
    diff -r tree back
    expect "$(stat -c '%a %Y' tree/deep/numbers)" "$(stat -c '%a %Y' back/deep/numbers)"
}

sftp_does_what_it_is_told() {
    printf 'mkdir made\ncd made\nput tree/large one\nrename one two\nln -s two three\nls -l\nget two got\nrm two\n' |
        timeout 120 sftp -q -F config -b - box.warren >said
    cmp tree/large got
    contains "$(cat said)" '-rw-r--r--    1 root     root     20971520'
    expect 'three' "$(ssh_to box.warren 'ls made')"
    printf 'get missing\n' >missing.batch
    contains "$(refused timeout 60 sftp -q -F config -b missing.batch box.warren)" 'not found'
}

# rsync is a program of both ends: this machine's goes into the guest.
rsync_copies_trees() {
    local files
    mapfile -t files < <(ldd "$(command -v rsync)" | grep -o '/[^ ]*')
    tar -C / -chf - "$(command -v rsync)" "${files[@]}" 2>/dev/null | warren cp -q - box:/
    timeout 120 rsync -a -e "$WARREN ssh" tree/ box:/srv/
    timeout 120 rsync -a -e 'ssh -F config' box.warren:/srv/ again/
    diff -r tree again
    expect '' "$(timeout 60 rsync -a -i -n -e "$WARREN ssh" tree/ box:/srv/)"
}

ports_are_forwarded_both_ways() {
    local in out
    in=$(free_port) out=$(free_port)
    ssh_to box.warren 'ifconfig lo up; httpd -p 127.0.0.1:81 -h /var/www'
    mkdir -p here && printf 'from here\n' >here/page
    spawn here python3 -m http.server "$out" --bind 127.0.0.1 --directory here
    until_ok 20 answers "http://127.0.0.1:$out/page"
    ssh -F config -f -N -M -S master -o ExitOnForwardFailure=yes -L "$in:localhost:81" -R "8800:127.0.0.1:$out" box.warren
    contains "$(curl -fsS -m 20 "http://127.0.0.1:$in/")" 'Hello from a microVM'
    expect 'from here' "$(ssh_to -S master box.warren 'wget -q -O - http://127.0.0.1:8800/page || nc 127.0.0.1 8800 <<EOT | tail -n 1
GET /page HTTP/1.0

EOT')"
    # A port that nobody listens on is refused, and the rest goes on.
    refused curl -fsS -m 20 "http://127.0.0.1:$(free_port)/" >refusal
    timeout 20 ssh -F config -S master -O cancel -R "8800:127.0.0.1:$out" box.warren
    refused ssh_to -S master box.warren 'nc -w 2 127.0.0.1 8800 </dev/null' >refusal
    timeout 20 ssh -F config -S master -O exit box.warren
}

an_agent_is_forwarded() {
    local files
    eval "$(ssh-agent)" >/dev/null
    PIDS+=("$SSH_AGENT_PID")
    ssh-add -q key
    mapfile -t files < <(ldd "$(command -v ssh-add)" | grep -o '/[^ ]*')
    tar -C / -chf - "$(command -v ssh-add)" "${files[@]}" 2>/dev/null | warren cp -q - box:/
    expect "$(ssh-add -l)" "$(ssh_to -A box.warren "$(command -v ssh-add) -l")"
    # Its socket is gone with the connection.
    expect '' "$(ssh_to box.warren 'ls /tmp')"
    kill "$SSH_AGENT_PID"
}

# through_gateway LOGIN COMMAND…: with the key alone, from a machine that has no Warren.
through_gateway() {
    timeout 60 ssh -F none -o BatchMode=yes -o IdentityAgent=none -o IdentitiesOnly=yes -i key -o UserKnownHostsFile=known \
        -o StrictHostKeyChecking=accept-new -p "$GATEWAY" "$1@127.0.0.1" "${@:2}"
}

the_gateway_wants_a_key_of_the_instance() {
    contains "$(refused through_gateway box true)" 'Permission denied'
    ssh_to box.warren 'umask 077; mkdir -p .ssh; cat >.ssh/authorized_keys' <key.pub
    expect 0 "$(through_gateway box 'id -u')"
    expect 0 "$(through_gateway root+box 'id -u')"
    # Given at create, and there again after a restart, once.
    expect "$(cat key.pub)" "$(through_gateway other 'cat .ssh/authorized_keys')"
    warren restart -q other
    expect "$(cat key.pub)" "$(through_gateway other 'cat .ssh/authorized_keys')"
    contains "$(refused warren run --ssh-key key busybox true)" 'is a private key'
    contains "$(refused through_gateway www+box true)" 'Permission denied'
    contains "$(refused through_gateway missing true)" 'Permission denied'
    # Keys that others could have written are none.
    ssh_to box.warren 'chmod 666 .ssh/authorized_keys'
    contains "$(refused through_gateway box true)" 'Permission denied'
}

each_instance_has_its_own_key() {
    [ "$(warren ssh --host-key box)" != "$(warren ssh --host-key other)" ]
}

an_instance_keeps_its_key() {
    expect "$KEY_BEFORE" "$(warren ssh --host-key box)"
    expect back "$(ssh_to box.warren 'echo back')"
}

GATEWAY=$(free_port)
check busybox-image "$ROOT/scripts/make-busybox-image" "$WORK/busybox"
serve ssh --network none --ssh-listen "127.0.0.1:$GATEWAY"
check load-image warren load -q "$WORK/busybox" --name busybox
check run-instance warren run -d -q --network none --name box busybox sleep 10000
ssh-keygen -q -t ed25519 -N '' -f key
check run-another warren run -d -q --network none --ssh-key key.pub --name other busybox sleep 10000
make_tree
warren ssh --config >config
check a-command-has-its-streams-and-status a_command_has_its_streams_and_status
check a-terminal-is-one a_terminal_is_one
check what-does-not-read-does-not-stand-still what_does_not_read_does_not_stand_still
check scp-copies-trees scp_copies_trees
check sftp-does-what-it-is-told sftp_does_what_it_is_told
if have rsync; then check rsync-copies-trees rsync_copies_trees; else skip ssh-rsync "rsync is not installed"; fi
check ports-are-forwarded-both-ways ports_are_forwarded_both_ways
check an-agent-is-forwarded an_agent_is_forwarded
check the-gateway-wants-a-key-of-the-instance the_gateway_wants_a_key_of_the_instance
KEY_BEFORE=$(warren ssh --host-key box)
check each-instance-has-its-own-key each_instance_has_its_own_key
kill -TERM "$SERVER_PID"
until_ok 20 process_gone "$SERVER_PID"
# Not within the check: what a subshell starts nobody ends.
spawn ssh "$WARREN" server --network none --ssh-listen "127.0.0.1:$GATEWAY"
SERVER_PID=$SPAWNED
check the-server-is-back server_is_up ssh
check an-instance-keeps-its-key an_instance_keeps_its_key

finish
