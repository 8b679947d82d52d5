#!/bin/sh
# The pictures that the embedded detector learns from and is judged on, out of Debian 12's packages:
#
#     sh train/detector/pictures.sh PICTURES
#
# makes PICTURES/scenery (no faces), PICTURES/people and PICTURES/wallpapers (judged on, never
# trained on; to be looked through by bench/face_free.py). PICTURES must be a new folder, or one that
# this has made: what it made before is made anew, but for the packages in PICTURES/packages, 4.2 GB,
# of which only missing ones are fetched. Needs 15 GB of disk, apt-get with the sources of Debian 12,
# dpkg, GNU find and Python; installs nothing.
set -eu

case "${1:-}" in '' | -*)
    echo 'usage: sh train/detector/pictures.sh PICTURES' >&2
    exit 2
    ;;
esac
if [ -e "$1" ] && [ ! -e "$1/made_by_pictures_sh" ]; then
    echo "$1 is there already, and not made by this script: name a new folder" >&2
    exit 2
fi
SCENERY='tuxpaint-stamps-default ufoai-textures lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    sway-backgrounds openarena-081-textures colobot-common-textures torcs-data supertuxkart-data
    stellarium-data flightgear-data-base naev-data gimp-help-en kstars-data imagemagick-6-doc
    lxqt-themes'
PEOPLE='libdlib19.1 kphotoalbum labelme-examples visp-images-data texlive-publishers-doc bagel'
WALLPAPERS='mate-backgrounds plasma-workspace-wallpapers ukui-wallpapers'

mkdir -p "$1/packages"
cd "$1"
touch made_by_pictures_sh
rm -rf scenery people wallpapers unpacked packages/fetching

# unpack KIND PACKAGE...: their files to unpacked/KIND.
unpack() {
    kind=$1
    shift
    for package in "$@"; do
        if ! ls packages/"$package"_*.deb >/dev/null 2>&1; then
            mkdir packages/fetching
            (cd packages/fetching && apt-get download "$package")
            mv packages/fetching/*.deb packages
            rmdir packages/fetching
        fi
        for deb in packages/"$package"_*.deb; do :; done
        dpkg-deb -x "$deb" "unpacked/$kind"
    done
}

# drop FOLDER PATTERN: deletes the files below it whose paths match, in any case; some must.
drop() {
    if [ -z "$(find "$1" -type f -regextype egrep -iregex "$2" -print -delete)" ]; then
        echo "nothing in $1 matches $2: are these the packages of Debian 12?" >&2
        exit 1
    fi
}

mkdir unpacked
unpack scenery $SCENERY
unpack people $PEOPLE
unpack wallpapers $WALLPAPERS

share=unpacked/scenery/usr/share
games=$share/games
mkdir -p scenery/torcs scenery/stk scenery/stellarium scenery/flightgear scenery/naev scenery/kstars
mv $share/tuxpaint/stamps $share/backgrounds scenery
python3 -m zipfile -e $games/ufoai/base/0textures.pk3 scenery/ufoai
python3 -m zipfile -e $games/openarena/baseoa/pak4-textures.pk3 scenery/openarena
mv $games/colobot/textures scenery/colobot
mv $games/torcs/tracks scenery/torcs
mv $games/supertuxkart/data/textures $games/supertuxkart/data/tracks scenery/stk
for part in nebulae landscapes scenery3d textures; do mv $share/stellarium/$part scenery/stellarium; done
mv $games/flightgear/Scenery/Models $games/flightgear/Textures/Terrain scenery/flightgear
mv $share/naev/dat/gfx/planet/exterior scenery/naev
mv $share/gimp/2.0/help/en/images scenery/gimp
mv $share/doc/HTML/en/kstars $share/kstars/textures scenery/kstars
mv $share/doc/imagemagick-6-common/html/images scenery/imagemagick
mv $share/lxqt scenery/lxqt
find scenery -type l -delete

# People, and maps that are no pictures of what they are put on.
rm -r scenery/stamps/people scenery/stamps/seasonal scenery/stamps/symbols/faces
rm -r scenery/stamps/sports/cartoon scenery/ufoai/textures/tex_pics scenery/stk/tracks/introcutscene*
drop scenery/ufoai '.*_(sm|nm|gm|rm|nhm)\..*'
drop scenery/torcs '.*/((pep|advert|isl|truck|cars)[^/]*|[^/]*(tree|ppl|crowd)[^/]*)'
drop scenery/flightgear \
    '.*(people|pilot|person|passenger|crew|farmer|worker|human|marshal|guard|jacket).*'
drop scenery/flightgear '.*/Misc/[^/]*man[^/]*|.*/[^/]*boy[^/]*'
drop scenery/flightgear \
    '.*/(avro|atr42|tractor|medtruck|caisses|medpush|beltload|consroller|fuelfarm)[^/]*'

doc=unpacked/people/usr/share/doc
mkdir people
mv $doc/libdlib19.1/examples/faces $doc/libdlib19.1/examples/johns people
rm people/faces/dogs.jpg
mv unpacked/people/usr/share/kphotoalbum/demo people/kphotoalbum
rm -r people/kphotoalbum/CategoryImages
mv $doc/labelme-examples/examples/instance_segmentation/data_dataset_voc/JPEGImages people/labelme
mv unpacked/people/usr/share/visp-images-data/ViSP-images/Solvay/*2126x1463.jpg people
mv $doc/bagel/html/_images/group.jpg $doc/texlive-doc/latex/jacow/TeamMeeting2019.jpg people
mv $doc/texlive-doc/latex/ftc-notebook/src/images/aug18.jpg people
mv unpacked/wallpapers wallpapers
rm -r unpacked
