"""A stranger's client: Python's grpcio, with code generated from proto/, using only what the first version had.

    grpcio_client.py ADDRESS talk      two clients talk, are refused, leave
    grpcio_client.py ADDRESS vanish    one client is killed; the other hears of it, once
    grpcio_client.py ADDRESS hold NAME joins, says so on stdout, and stays until it is killed
"""

import queue
import signal
import subprocess
import sys

import chat_pb2
import chat_pb2_grpc
import grpc

PATIENCE = 30


class Client:
    """One stream. Counts its Lamport time as the first version's clients did, and merges what it receives."""

    def __init__(self, address, name, identity=0):
        self.name, self.identity, self.time = name, identity, 0
        self.requests = queue.Queue()
        self.channel = grpc.insecure_channel(address)
        stub = chat_pb2_grpc.ChatServiceStub(self.channel)
        self.call = stub.Chat(iter(self.requests.get, None), timeout=PATIENCE)

    def wait_for_headers(self):
        """Blocks until the server's headers are there; nothing was sent yet."""
        assert self.requests.empty()
        return dict(self.call.initial_metadata())

    def send(self, kind, text=""):
        self.time += 1
        self.requests.put(
            chat_pb2.JoinMsgLeave(
                id=self.identity, client_name=self.name, timestamp=self.time, msg=text, type=kind
            )
        )

    def join(self):
        self.send(chat_pb2.JOIN)

    def say(self, text):
        self.send(chat_pb2.MESSAGE, text)

    def leave(self):
        self.send(chat_pb2.LEAVE)

    def hear(self):
        message = next(self.call)
        assert message.timestamp > 0, message
        self.time = max(self.time, message.timestamp) + 1
        return message

    def hears(self, kind, sender, text):
        """The next message is this, from this client."""
        message = self.hear()
        assert (message.type, message.sender_name) == (kind, sender), message
        if kind == chat_pb2.MESSAGE:
            assert message.msg_stream == text, message
        else:
            expected = f"Participant {sender} {text} Chit Chat at logical time L={message.timestamp}"
            assert message.msg_stream == expected, message
        return message

    def end(self):
        """The stream ends without another message; gives the status code."""
        try:
            message = next(self.call)
        except StopIteration:
            pass
        except grpc.RpcError:
            pass
        else:
            raise AssertionError(f"one more message: {message}")
        self.requests.put(None)
        code = self.call.code()
        self.channel.close()
        return code


def talk(address):
    alex, aske = Client(address, "Alex\n", identity=7), Client(address, "Aske\n")
    # Many clients send nothing before they have the headers.
    for client in (alex, aske):
        client.wait_for_headers()

    alex.join()
    joined = alex.hears(chat_pb2.JOIN, "Alex", "joined")
    assert joined.sender_id == 7, joined
    assert joined.timestamp == 2, "a client that counts its JOIN arrives at L = max(0, 1) + 1"
    alex.say("Hello World!\n")
    alex.hears(chat_pb2.MESSAGE, "Alex", "Hello World!")

    aske.join()
    for client in (alex, aske):
        joined = client.hears(chat_pb2.JOIN, "Aske", "joined")
        assert joined.sender_id not in (0, 7), joined
    aske.say("Hej Alex, hvordan går det? 👋")
    heard = [client.hears(chat_pb2.MESSAGE, "Aske", "Hej Alex, hvordan går det? 👋") for client in (alex, aske)]
    assert heard[0] == heard[1], heard
    assert heard[0].timestamp > joined.timestamp, "a reply is later than what its sender had seen"
    # No message but the room's own for a client that asks for nothing newer.
    assert not heard[0].HasField("notice") and not heard[0].HasField("welcome"), heard

    # The limit counts characters: 354 of two bytes each.
    before = alex.time
    alex.say("å" * 354)
    notice = alex.hear()
    assert (notice.sender_id, notice.sender_name) == (0, "Server"), notice
    assert notice.type == chat_pb2.MESSAGE, notice
    assert notice.msg_stream == "Message too long (354 chars). Limit is 128.", notice
    assert notice.timestamp > before, "receiving it was an event"

    # Aske hears nothing of it, and the stream of Alex goes on.
    alex.say("å" * 128)
    heard = [client.hears(chat_pb2.MESSAGE, "Alex", "å" * 128) for client in (alex, aske)]
    assert heard[0] == heard[1], heard
    assert heard[0].timestamp > notice.timestamp, heard

    aske.leave()
    assert aske.end() == grpc.StatusCode.OK
    alex.hears(chat_pb2.LEAVE, "Aske", "left")
    alex.say("")
    alex.hears(chat_pb2.MESSAGE, "Alex", "")
    alex.leave()
    assert alex.end() == grpc.StatusCode.OK

    # Whoever does not begin with a JOIN is told.
    rude = Client(address, "Rude")
    rude.say("hi")
    assert rude.end() == grpc.StatusCode.FAILED_PRECONDITION


def vanish(address):
    bob = Client(address, "Bob")
    bob.join()
    bob.hears(chat_pb2.JOIN, "Bob", "joined")
    with subprocess.Popen(
        [sys.executable, __file__, address, "hold", "Eve"], stdout=subprocess.PIPE, text=True
    ) as process:
        bob.hears(chat_pb2.JOIN, "Eve", "joined")
        assert process.stdout.readline() == "joined\n"
        process.send_signal(signal.SIGKILL)
    bob.hears(chat_pb2.LEAVE, "Eve", "left")
    # Once: what comes next is what is said next, and the name is free again.
    bob.say("Eve?")
    bob.hears(chat_pb2.MESSAGE, "Bob", "Eve?")
    eve = Client(address, "Eve")
    eve.join()
    eve.hears(chat_pb2.JOIN, "Eve", "joined")
    bob.hears(chat_pb2.JOIN, "Eve", "joined")
    # A client that closes its side without a LEAVE has left too.
    eve.requests.put(None)
    bob.hears(chat_pb2.LEAVE, "Eve", "left")
    assert eve.end() == grpc.StatusCode.OK
    bob.leave()
    assert bob.end() == grpc.StatusCode.OK


def hold(address, name):
    client = Client(address, name)
    client.join()
    client.hears(chat_pb2.JOIN, name, "joined")
    print("joined", flush=True)
    client.hear()


if __name__ == "__main__":
    where, scenario, *arguments = sys.argv[1:]
    {"talk": talk, "vanish": vanish, "hold": hold}[scenario](where, *arguments)
