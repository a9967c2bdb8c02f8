from tests import fuzz


def test_broken_pictures_end_as_pixels_or_as_item_errors() -> None:
    report = fuzz.run(files=300, seed=7)
    assert not report.escaped
    assert report.outcomes.keys() == {"pixels", "image_unreadable", "image_too_large"}
    assert report.outcomes["pixels"] > 30
    assert report.grown_mib < 200


def test_a_file_of_a_seed_is_always_the_same() -> None:
    assert (
        fuzz.run(files=3, seed=1, first=40).outcomes == fuzz.run(files=3, seed=1, first=40).outcomes
    )
