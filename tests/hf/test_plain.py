"""`decode`: greedy, up to an end token or not."""

import torch
from families import family

import landmark
from landmark.hf.compat import cache_kwargs
from landmark.hf.plain import decode

IDS = torch.randint(3, 61, (1, 70), generator=torch.Generator().manual_seed(5))


def test_greedy_decoding_is_that_of_generate():
    model = landmark.convert(family("llama"), block_size=5, retrieve=2, local_blocks=1)
    expected = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)[0, IDS.shape[1] :].tolist()
    end = expected[3]
    for ends, count in (((), 6), ([end], expected.index(end) + 1)):
        cache = landmark.LandmarkCache(model.config)
        with torch.no_grad():
            model(input_ids=IDS[:, :-1], **cache_kwargs(model, cache))
        found = decode(model, IDS[0, -1:], 6, ends=ends, **cache_kwargs(model, cache))
        assert found == expected[:count]
