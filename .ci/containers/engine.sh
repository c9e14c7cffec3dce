# A Docker engine for one run, to be sourced. It lives in a network namespace and a directory of its own: it changes nothing of the
# host's links, firewall or images, and no port of it clashes with one of the host. Needs root, and what `.ci/tools docker
# compose` names.
#
# Every address outside of the namespace is a black hole: packets vanish and nothing answers. So an image that is not here cannot
# be pulled, and a name server never answers, which is what a stop has to survive.

# start_engine: starts it, and exports what `docker` and `docker compose` need to find it.
start_engine() {
    engine=$(mktemp -d)
    mkdir -p "$engine/bin" "$engine/config/cli-plugins"
    local command
    for command in ip{,6}tables{,-save,-restore}; do
        ln -s "$CHITCHAT_TEST_DOCKER/usr/sbin/xtables-nft-multi" "$engine/bin/$command"
    done
    ln -s "$CHITCHAT_TEST_COMPOSE" "$engine/config/cli-plugins/docker-compose"
    export PATH=$engine/bin:$CHITCHAT_TEST_DOCKER/usr/bin:$CHITCHAT_TEST_DOCKER/usr/sbin:$PATH
    export DOCKER_HOST=unix://$engine/socket DOCKER_CONFIG=$engine/config
    local libraries
    libraries=$CHITCHAT_TEST_DOCKER/usr/lib/$(uname -m)-linux-gnu
    LD_LIBRARY_PATH=$libraries XTABLES_LIBDIR=$libraries/xtables unshare --net sh -ec '
        ip link set lo up
        ip link add outside type veth peer name nobody
        ip link set nobody up
        ip link set outside up
        ip address add 198.51.100.1/24 dev outside
        ip neighbour add 198.51.100.2 lladdr 02:00:00:00:00:02 dev outside
        ip route add default via 198.51.100.2
        exec dockerd --data-root "$0/data" --exec-root "$0/exec" --pidfile "$0/pid" --host "unix://$0/socket"
    ' "$engine" >"$engine/log" 2>&1 &
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        if docker version >/dev/null 2>&1; then return; fi
        kill -0 $! 2>/dev/null || break
        sleep 0.1
    done
    cat "$engine/log" >&2
    echo "the Docker engine does not start" >&2
    return 1
}

# stop_engine: ends it with all its containers, and removes what it had.
stop_engine() {
    [[ -n ${engine-} && -d $engine ]] || return 0
    if [[ -e $engine/pid ]]; then
        # shellcheck disable=SC2046
        docker rm --force $(docker ps --all --quiet) >/dev/null 2>&1 || true
        kill "$(<"$engine/pid")" 2>/dev/null || true
        local tries
        for ((tries = 0; tries < 150; tries++)); do
            [[ -e $engine/pid ]] || break
            sleep 0.1
        done
    fi
    # What a build or a container that was cut off had mounted.
    awk -v engine="$engine/" 'index($2, engine) == 1 { print $2 }' /proc/self/mounts | sort --reverse |
        xargs --no-run-if-empty umount --lazy
    rm -rf "$engine"
}
