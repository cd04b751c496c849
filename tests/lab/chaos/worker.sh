# One worker of the chaos test: sourced by it with what its engine needs. Each word of $kills is a cycle; the last line
# on stdout says how many there were and how many containers ran.
started=0 cycles=0

# Ends the helper of the container with this id, if there is one.
end_helper() {
    for line in $(grep -laF "$1" /proc/[0-9]*/cmdline 2>/dev/null); do
        grep -qaF attend "$line" 2>/dev/null || continue
        pid=${line#/proc/}
        kill -9 "${pid%/cmdline}" 2>/dev/null
    done
}

# runc or crun, a namespace made by hand: $runtime, $late, $bundle_of.
by_hand() {
    id=$worker-$cycles ns=$worker$cycles
    ip netns add "$ns"
    ip link add "v$ns" type veth peer name eth0 netns "$ns"
    ip link set "v$ns" master hand0 up
    ip -n "$ns" link set eth0 up
    address="172.38.$network.$((cycles % 250 + 2))/16"
    [ "$late" = yes ] || ip -n "$ns" addr add "$address" dev eth0
    bundle=/run/lab/bundles/$id
    mkdir -p "$bundle"
    sed "s/NETNS/$ns/g" "/run/lab/bundles/$worker.json" >"$bundle/config.json"
    create="$runtime create --bundle $bundle --pid-file $bundle/pid $id"
    case $1 in
    create) timeout -s KILL "0.0$((cycles % 4))$((cycles % 10))" $create ;;
    *) $create ;;
    esac
    if [ "$late" = yes ]; then
        [ "$1" != helper ] || end_helper "$id"
        ip -n "$ns" addr add "$address" dev eth0
    fi
    if $runtime start "$id"; then
        started=$((started + 1))
    fi
    case $1 in
    init) kill -9 "$(cat "$bundle/pid")" ;;
    port) ip link del "v$ns" ;;
    esac
    $runtime delete --force "$id"
    # A runtime that was killed at its work leaves its own child behind, which is no concern of tunjail's.
    for pid in $(ip netns pids "$ns"); do
        kill -9 "$pid"
    done
    ip netns del "$ns"
    ip link del "v$ns" 2>/dev/null
    rm -rf "$bundle"
}

# Docker or Podman: $engine, $run (its options and image), $remove.
by_engine() {
    name=$worker-$cycles
    if $engine run -d --name "$name" $run /bin/sleep 3600; then
        started=$((started + 1))
    fi
    pid=$($engine inspect --format '{{.State.Pid}}' "$name")
    case $1 in
    init) kill -9 "$pid" ;;
    helper) end_helper "$($engine inspect --format '{{.Id}}' "$name")" ;;
    parent) kill -9 "$(cut -d ' ' -f 4 "/proc/$pid/stat")" ;;
    kill) $engine kill "$name" ;;
    restart) $engine restart -t 0 "$name" ;;
    esac
    $engine $remove "$name"
}

for how in $kills; do
    cycles=$((cycles + 1))
    $kind "$how" >>"/run/lab/$worker.log" 2>&1
done
echo "{\"cycles\": $cycles, \"started\": $started}"
