"""What a plain app's image, sources and mounts look like from inside the container."""

import textwrap


def test_env_workdir_files_and_folders_of_an_image_are_in_the_container(run_app, tmp_path):
    (tmp_path / "prompt.txt").write_text("be brief")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1,2")
    (tmp_path / "data" / "b.tmp").write_text("no")
    (tmp_path / "companion.py").write_text("ANSWER = 42\n")
    found = run_app("""
        import modal
        app = modal.App("mounts")
        image = (modal.Image.debian_slim().apt_install("ffmpeg").env({"COLOUR": "blue sky"}).workdir("/srv/here")
                 .add_local_file("prompt.txt", "/etc/prompt.txt")
                 .add_local_dir("data", "/data", ignore=["*.tmp"])
                 .add_local_python_source("companion"))

        @app.function(image=image)
        def look():
            import os, companion
            return {"env": os.environ["COLOUR"], "cwd": os.getcwd(), "prompt": open("/etc/prompt.txt").read(),
                    "data": sorted(os.listdir("/data")), "companion": companion.ANSWER,
                    "remote": os.environ["MODAL_IS_REMOTE"], "token": sorted(k for k in os.environ if "TOKEN" in k)}

        @app.local_entrypoint()
        def main(): report(look.remote())
    """)
    assert found == {
        "env": "blue sky",
        "cwd": "/srv/here",
        "prompt": "be brief",
        "data": ["a.csv"],
        "companion": 42,
        "remote": "1",
        "token": [],
    }


def test_a_requirement_that_differs_from_what_is_installed_is_refused_with_both_versions(modal_cli, tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal
        app = modal.App("other")
        image = modal.Image.debian_slim().uv_pip_install("click==1.0", "hypothesis==0.1")
        @app.function(image=image)
        def f(): pass
        @app.local_entrypoint()
        def main(): f.remote()
        """)
    )
    done = modal_cli("run", "app.py", check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "click==1.0 is asked for, and 8." in said.replace("\n", " ")
    assert "hypothesis==0.1 is asked for" in said.replace("\n", " ")


def test_what_host_mode_did_not_do_is_said_in_the_build_log(modal_cli, tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal
        app = modal.App("apt")
        image = modal.Image.debian_slim().apt_install("ffmpeg").run_commands("make everything")
        @app.function(image=image)
        def f(): return 1
        @app.local_entrypoint()
        def main(): print("got", f.remote())
        """)
    )
    done = modal_cli("run", "app.py")
    said = " ".join((done.stdout + done.stderr).split())
    assert "not done in host mode" in said
    assert "make everything" in said
    assert "got 1" in said


def test_a_package_beside_the_app_is_brought_along_and_serialized_functions_need_none(run_app, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "prices.py").write_text("APPLE = 3\n")
    found = run_app("""
        import modal
        app = modal.App("package")
        image = modal.Image.debian_slim().add_local_python_source("shop")

        @app.function(image=image)
        def price(n):
            from shop.prices import APPLE
            return n * APPLE

        @app.function(serialized=True, include_source=False)
        def plain(n):
            import os
            return n + 1, sorted(name for name in os.listdir("/root") if name.endswith(".py"))

        @app.local_entrypoint()
        def main(): report([price.remote(4), plain.remote(1)])
    """)
    assert found == [12, [2, []]]
