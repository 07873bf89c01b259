"""A real process of examples/serve.py, and how to ask it."""
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

SERVER = Path(__file__).parents[1] / 'examples/serve.py'


def ask(address, content=None):
    """(status, body) of a request; a body is sent by POST."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, content), timeout=120) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextlib.contextmanager
def serving(config, checkpoint, *options):
    """Its address, once it answers."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    address = f'http://localhost:{port}'
    with tempfile.TemporaryFile('w+', encoding='utf-8') as said:  # a pipe that nobody reads would fill up
        process = subprocess.Popen([sys.executable, SERVER, config, checkpoint, '--port', str(port), *options],
                                   stdout=said, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                try:
                    ask(f'{address}/about')
                    break
                except OSError:
                    said.seek(0)
                    assert process.poll() is None, said.read()
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            process.wait(30)
