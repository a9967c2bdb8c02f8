"""The table for people who come from elsewhere: complete, and true."""

import re
from pathlib import Path

import pytest

from api_client.aio import AsyncClient
from api_client.client import Client

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text()

# What people were promised that they could call.
CALLS = """load_model switch_model_by_id unload_model is_model_loaded get_current_model_id
get_loaded_models get_all_loaded_models_info get_model_memory_usage get_memory_pressure_level
get_available_models get_model_info embed_images embed_images_detailed encode_text encode_image
encode_batch_text encode_batch_images generate_embedding generate_embeddings_batch
compute_similarity get_embedding_dimension unload_all unload_service unload_by_memory_pressure
unload_by_timeout cleanup embed_texts"""


@pytest.mark.parametrize("call", CALLS.split())
def test_a_call_that_people_come_with_is_in_the_table(call):
    assert re.search(rf"^\| .*`{call}\(", PAGE, re.MULTILINE)


def test_every_call_of_ours_in_the_table_exists():
    named = set(re.findall(r"`Client\.(\w+)`", PAGE))
    assert {name for name in named if not hasattr(Client, name)} == set()
    assert {name for name in named if not hasattr(AsyncClient, name)} == set()


def test_every_call_of_the_client_is_in_the_table():
    ours = {name for name in vars(Client) if not name.startswith("_")}
    assert ours - set(re.findall(r"`Client\.(\w+)`", PAGE)) == set()
