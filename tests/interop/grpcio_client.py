"""A client for Python's grpcio, with code generated from proto/, that uses only the fields of the first version.

    grpcio_client.py ADDRESS talk      two clients talk, get a rejection, and leave
    grpcio_client.py ADDRESS vanish    one client is killed; the other receives one LEAVE
    grpcio_client.py ADDRESS hold NAME joins, prints "joined", and stays until it is killed
"""

import queue
import signal
import subprocess
import sys

import chat_pb2
import chat_pb2_grpc
import grpc

TIMEOUT = 30


class Client:
    """One stream, with the Lamport clock of a client."""

    def __init__(self, address, name, identity=0):
        self.name, self.identity, self.time = name, identity, 0
        self.requests = queue.Queue()
        self.channel = grpc.insecure_channel(address)
        stub = chat_pb2_grpc.ChatServiceStub(self.channel)
        self.call = stub.Chat(iter(self.requests.get, None), timeout=TIMEOUT)

    def wait_for_headers(self):
        """Blocks until the server has sent its headers, before any message is sent."""
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

    def receive(self):
        message = next(self.call)
        assert message.timestamp > 0, message
        self.time = max(self.time, message.timestamp) + 1
        return message

    def expect(self, kind, sender, text):
        """Asserts that the next message is this one, and returns it."""
        message = self.receive()
        assert (message.type, message.sender_name) == (kind, sender), message
        if kind == chat_pb2.MESSAGE:
            assert message.msg_stream == text, message
        else:
            expected = f"Participant {sender} {text} Chit Chat at logical time L={message.timestamp}"
            assert message.msg_stream == expected, message
        return message

    def end(self):
        """Asserts that the stream ends without another message, and returns the status code."""
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
    # Some clients send nothing until they have the headers.
    for client in (alex, aske):
        client.wait_for_headers()

    alex.join()
    joined = alex.expect(chat_pb2.JOIN, "Alex", "joined")
    assert joined.sender_id == 7, joined
    assert joined.timestamp == 2, "a client that counts its JOIN arrives at L = max(0, 1) + 1"
    alex.say("Hello World!\n")
    alex.expect(chat_pb2.MESSAGE, "Alex", "Hello World!")

    aske.join()
    for client in (alex, aske):
        joined = client.expect(chat_pb2.JOIN, "Aske", "joined")
        assert joined.sender_id not in (0, 7), joined
    aske.say("Hej Alex, hvordan går det? 👋")
    received = [client.expect(chat_pb2.MESSAGE, "Aske", "Hej Alex, hvordan går det? 👋") for client in (alex, aske)]
    assert received[0] == received[1], received
    assert received[0].timestamp > joined.timestamp, "a reply has a later time than what its sender had received"
    # No welcome and no notices for a client that does not ask for them.
    assert not received[0].HasField("notice") and not received[0].HasField("welcome"), received

    # The limit counts characters: 354 of two bytes each.
    alex.say("å" * 354)
    notice = alex.receive()
    assert (notice.sender_id, notice.sender_name) == (0, "Server"), notice
    assert notice.type == chat_pb2.MESSAGE, notice
    assert notice.msg_stream == "Message too long (354 chars). Limit is 128.", notice
    assert notice.timestamp == received[0].timestamp + 1, "the rejected message ticks the clock, and is not merged"

    # Aske gets no notice, and the stream of Alex continues.
    alex.say("å" * 128)
    received = [client.expect(chat_pb2.MESSAGE, "Alex", "å" * 128) for client in (alex, aske)]
    assert received[0] == received[1], received
    assert received[0].timestamp > notice.timestamp, received

    aske.leave()
    assert aske.end() == grpc.StatusCode.OK
    alex.expect(chat_pb2.LEAVE, "Aske", "left")
    alex.say("")
    alex.expect(chat_pb2.MESSAGE, "Alex", "")
    alex.leave()
    assert alex.end() == grpc.StatusCode.OK

    # The first message must be a JOIN.
    rude = Client(address, "Rude")
    rude.say("hi")
    assert rude.end() == grpc.StatusCode.FAILED_PRECONDITION


def vanish(address):
    bob = Client(address, "Bob")
    bob.join()
    bob.expect(chat_pb2.JOIN, "Bob", "joined")
    with subprocess.Popen(
        [sys.executable, __file__, address, "hold", "Eve"], stdout=subprocess.PIPE, text=True
    ) as process:
        bob.expect(chat_pb2.JOIN, "Eve", "joined")
        assert process.stdout.readline() == "joined\n"
        process.send_signal(signal.SIGKILL)
    bob.expect(chat_pb2.LEAVE, "Eve", "left")
    # There is one LEAVE: the next event is the next message. The name is free again.
    bob.say("Eve?")
    bob.expect(chat_pb2.MESSAGE, "Bob", "Eve?")
    eve = Client(address, "Eve")
    eve.join()
    eve.expect(chat_pb2.JOIN, "Eve", "joined")
    bob.expect(chat_pb2.JOIN, "Eve", "joined")
    # Closing the request stream without a LEAVE leaves too.
    eve.requests.put(None)
    bob.expect(chat_pb2.LEAVE, "Eve", "left")
    assert eve.end() == grpc.StatusCode.OK
    bob.leave()
    assert bob.end() == grpc.StatusCode.OK


def hold(address, name):
    client = Client(address, name)
    client.join()
    client.expect(chat_pb2.JOIN, name, "joined")
    print("joined", flush=True)
    client.receive()


if __name__ == "__main__":
    where, scenario, *arguments = sys.argv[1:]
    {"talk": talk, "vanish": vanish, "hold": hold}[scenario](where, *arguments)
