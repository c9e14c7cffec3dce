FROM rust:1.95-bookworm AS build
# The revision that `chitchat_build_info` reports; the build context has no git repository.
ARG CHITCHAT_REVISION=unknown
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY src src
COPY bench/Cargo.toml bench/Cargo.toml
COPY bench/src bench/src
COPY fuzz/Cargo.toml fuzz/Cargo.toml
COPY fuzz/src fuzz/src
COPY verify verify
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    target="$(rustc --print host-tuple)" \
    && RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" cargo build --release --locked --bins --target "$target" \
    && install -D -t /out "target/$target/release/chitchat" "target/$target/release/chitchat-bench" \
    && mkdir -m 0700 /out/data

# The statically linked programs and the empty data directory, nothing else.
FROM scratch
LABEL org.opencontainers.image.title="Chit Chat" \
      org.opencontainers.image.description="A gRPC chat server in which a room is an ordered log" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /out/chitchat /out/chitchat-bench /usr/local/bin/
COPY --from=build --chown=65532:65532 /out/data /data
# All addresses of the container; who can reach them is decided where the ports are published, hence plain text unless there is
# a certificate (CHITCHAT_TLS_CERT, CHITCHAT_TLS_KEY). For a log that outlives the container, mount a volume at /data.
ENV CHITCHAT_LISTEN=0.0.0.0:50052 \
    CHITCHAT_INSECURE=true \
    CHITCHAT_ADMIN=0.0.0.0:9464 \
    CHITCHAT_DATA_DIR=/data
USER 65532:65532
EXPOSE 50052 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/chitchat", "health", "--server", "127.0.0.1:50052"]
ENTRYPOINT ["/usr/local/bin/chitchat"]
CMD ["serve"]
