"""A client for Python's grpcio that joins over TLS, says one thing, and leaves.

    grpcio_once.py ADDRESS CA_FILE [TOKEN]

Prints what it receives, or exits with code 1 and prints the code and the message of the status.
"""

import sys

import chat_pb2
import chat_pb2_grpc
import grpc


def main(address, ca, *token):
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    messages = [
        chat_pb2.JoinMsgLeave(client_name="grpcio", timestamp=1, type=chat_pb2.JOIN),
        chat_pb2.JoinMsgLeave(msg="Hello from grpcio", timestamp=2, type=chat_pb2.MESSAGE),
        chat_pb2.JoinMsgLeave(timestamp=3, type=chat_pb2.LEAVE),
    ]
    metadata = [("authorization", f"Bearer {text}") for text in token]
    with grpc.secure_channel(address, credentials) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).Chat(iter(messages), metadata=metadata, timeout=30)
        try:
            for message in call:
                print(message.msg_stream)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")


main(*sys.argv[1:])
