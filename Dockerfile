# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
# The image's own toolchain, so that rust-toolchain.toml makes rustup download nothing.
ENV RUSTUP_TOOLCHAIN=1.95.0
# What `chitchat_build_info` says: there is no git in here.
ARG CHITCHAT_REVISION=unknown
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    target="$(rustc --print host-tuple)" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin chitchat --target "$target" \
    && install -D "target/$target/release/chitchat" /out/chitchat \
    && mkdir /out/data

# The program, which is linked statically, its data directory, and nothing else.
FROM scratch
LABEL org.opencontainers.image.title="Chit Chat" \
      org.opencontainers.image.description="A gRPC chat server in which a room is an ordered log" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /out/chitchat /usr/local/bin/chitchat
COPY --from=build --chown=65532:65532 /out/data /data
# Within a container every address is its own: what is reachable from outside is decided where ports are published.
ENV CHITCHAT_LISTEN=0.0.0.0:50052 \
    CHITCHAT_ADMIN=0.0.0.0:9464 \
    CHITCHAT_DATA_DIR=/data
VOLUME /data
USER 65532:65532
EXPOSE 50052 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/chitchat", "health", "--server", "127.0.0.1:50052"]
ENTRYPOINT ["/usr/local/bin/chitchat"]
CMD ["serve"]
