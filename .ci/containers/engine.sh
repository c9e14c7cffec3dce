# To be sourced: functions that run a Docker engine for one test run. The engine has its own network namespace and directory, so it
# does not change the host's links, firewall or images, and its ports do not conflict with ports of the host. Needs root and the
# environment variables that `.ci/tools docker compose` prints.
#
# Every address outside the namespace is a black hole: packets are dropped without a response. So no image can be pulled, and DNS
# queries are never answered. The server must be able to stop in spite of that.

# start_engine: starts the engine, and exports the variables with which `docker` and `docker compose` find it.
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

# stop_engine: removes all containers, stops the engine, and deletes its directory.
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
    # Unmount what an interrupted build or container left mounted.
    awk -v engine="$engine/" 'index($2, engine) == 1 { print $2 }' /proc/self/mounts | sort --reverse |
        xargs --no-run-if-empty umount --lazy
    rm -rf "$engine"
}
